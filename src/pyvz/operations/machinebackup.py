"""The disks of a virtual machine, into a repository: what `backup` reads, and when.

    <home>/.backup/hddN                what is overwritten meanwhile (vm/moment.py)
    <run>/vm-backup/<uuid>/hddN/       of a storage daemon, which shows the disk as a raw file
    <run>/vm-backup/<uuid>/nbd.sock    where QEMU exports the disks of one that runs
    <run>/vm-backup/<uuid>/pull.json   of a backup in pull mode (machinepull.py) instead of all that
    <run>/vm-backup/<uuid>/copy.json   of a copy of a disk (machineblockcopy.py)

An encrypted disk is stored as it lies there, encrypted, so the machine must not run; all of it is
read.

All disks are of one moment; when the guest's agent answers, its file systems are still in it.  What
changed since the last backup is told by a bitmap in the qcow2 image, or in QEMU's memory for
another image.  Where it is lost (QEMU was killed; of such another image: has ended) the disk is
read whole, and only what the repository does not have is stored.

The lease is held until the disks are open.  From then on the machine that runs needs to go on
running (backuplease.py), and its directory in <run> tells the next vzd what a killed one has left;
that of one that does not run is kept to the end, and a journal tells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.backup import image as images
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.image import Index, Source
from pyvz.backup.manifest import IMAGE, Disk, Manifest
from pyvz.errors import InvalidState, StorageError, Unsupported, VZError
from pyvz.linux import file, filecopy
from pyvz.linux.extents import Range
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import (
    backuplease,
    capturedisk,
    home,
    machinedrives,
    machineguest,
    machinemount,
    machinepending,
)
from pyvz.operations.capturedisk import Copy
from pyvz.operations.node import Node
from pyvz.storage import bundle
from pyvz.storage.daemon import NODE, Daemon
from pyvz.store import copies, pulls
from pyvz.store.journal import Journal, Record
from pyvz.vm import blockjob, firmware, image, mirror, moment, tpm
from pyvz.vm.moment import Mark, View

log = logging.getLogger(__name__)

VERB: Final = "machine-backup"  # of the journal records that `repair` understands
# Disks of these names are files: the firmware's variables, and what the TPM knows.
_BESIDE: Final = {firmware.VARIABLES: firmware.VARIABLES, tpm.STATE: f"{tpm.DIRECTORY}/{tpm.STATE}"}
_SEALED: Final = "qcow2-luks"  # "driver" of a disk whose bytes are those of its encrypted image
_KEPT: Final = ".backup"
_SOCKET: Final = "nbd.sock"


class Disks:
    """The disks of a machine at one moment, open.  live: read from its QEMU, without the lease."""

    def __init__(
        self, node: Node, env: Environment, mark: str, drives: tuple[Drive, ...], copies: list[Copy]
    ) -> None:
        self._node, self._env = node, env
        self._mark, self._drives = mark, drives
        self._copies = copies
        self.live = env.uuid in node.machines.running()

    def back_up(
        self, writer: Writer, chunks: Chunks, parent: Manifest | None, progress: Progress
    ) -> tuple[Disk, ...]:
        """Store every disk; of those that PARENT has, only what changed since."""
        found = capturedisk.back_up(self._copies, (writer, chunks), parent, progress)
        paths = (self._env.home / path for path in _BESIDE.values())
        return (*found, *(_file(path, writer, progress) for path in paths if path.exists()))

    def keep(self) -> None:
        """After the commit: bitmaps of earlier backups go."""
        for drive in self._drives:
            if has_marks(self._node, self._env, drive):
                with asked(self._node, self._env, drive) as (execute, name):
                    moment.drop_bitmaps(execute, name, keep=self._mark)


def marked(drive: Drive) -> bool:
    """Whether the image itself can keep a bitmap of what changed."""
    return drive.format == "qcow2" and not drive.keyid


def mark_of(drive: Drive, name: str) -> Mark:
    """Return the bitmap to begin on a disk: in its image, or in QEMU's memory."""
    return Mark(name, kept=marked(drive))


def has_marks(node: Node, env: Environment, drive: Drive) -> bool:
    """Whether there can be bitmaps of a disk: without QEMU only those in its image."""
    return marked(drive) or env.uuid in node.machines.running()


def _file(path: Path, writer: Writer, progress: Progress) -> Disk:
    """Store a file as a disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError(f"{path} is no file")
        size = os.fstat(fd).st_size
        pages = images.back_up(Source(fd, 0, size), writer, progress)
        return Disk(path.name, IMAGE, "file", size, None, pages)
    finally:
        os.close(fd)


@contextlib.contextmanager
def disks_of(
    node: Node, env: Environment, draft: Manifest, parent: Manifest | None
) -> Iterator[Disks]:
    """Have all disks open, as they are at this moment; the caller holds the lease.

    The block may give the lease back when they are `live`.  When it raises, the next backup goes on
    from where this one would have.
    """
    config = node.registry.config(env)
    drives = tuple(each for each in config.machine.drives if each.is_disk and each.enabled)
    running = env.uuid in node.machines.running()
    if running:
        monitor = node.machines.monitor(env.uuid)
        machinepending.check_plugged(env, config, monitor, "be backed up")
    for drive in drives:
        if drive.device:
            raise Unsupported(
                f"{drive.name} of {env.name} is a disk of the node ({drive.device})",
                hint="It is not backed up. Take it away or disable it for the backup.",
            )
        if drive.keyid and running:
            raise InvalidState(
                f"{drive.name} of {env.name} is encrypted: what runs would be stored in the clear",
                hint=f"prlctl suspend {env.name}, back it up, and resume it.",
            )
    mark = moment.bitmap(draft.reference)
    since = moment.bitmap(parent.reference) if parent is not None else ""
    data = home.to_data(env) | {"mark": mark}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal, ExitStack() as stack:
        stack.callback(journal.done)
        stack.callback(_remove, node, env)
        failed = stack.enter_context(ExitStack())
        failed.callback(drop_mark, node, env, mark, drives)
        stack.callback(_end, node, env)
        work = _Work(node, env, mark, since, stack)
        backuplease.directory(node, env.uuid).mkdir(mode=0o700, parents=True, exist_ok=True)
        copies = work.running(drives) if running else work.stopped(drives)
        if running:
            journal.done()  # it is of who holds the lease; from here on the directory tells
        with _told_why(node, env) if running else contextlib.nullcontext():
            yield Disks(node, env, mark, drives, copies)
        failed.pop_all()


@contextlib.contextmanager
def _told_why(node: Node, env: Environment) -> Iterator[None]:
    """Raise StorageError when the block fails because the machine has ended."""
    try:
        yield
    except (VZError, OSError) as error:
        if env.uuid in node.machines.running():
            raise
        raise StorageError(f"{env.name} has stopped while it was being backed up") from error


class _Work:
    """How the disks are opened."""

    def __init__(
        self, node: Node, env: Environment, mark: str, since: str, stack: ExitStack
    ) -> None:
        self._node, self._env = node, env
        self._mark, self._since, self._stack = mark, since, stack
        self._place = backuplease.directory(node, env.uuid)

    def running(self, drives: tuple[Drive, ...]) -> list[Copy]:
        """Open the disks of one that runs: by its QEMU."""
        monitor = self._node.machines.monitor(self._env.uuid)
        moment.end(monitor)  # what a killed one has left
        views = []
        for drive in drives:
            views.append(View(drive.name, self._usable(monitor.execute, drive.name)))
            with self._shadow(drive) as descriptor:
                moment.shadow(monitor, drive.name, descriptor)
        marks = {each.name: mark_of(each, self._mark) for each in drives}
        with machineguest.frozen(self._node, self._env):
            moment.begin(monitor, tuple(views), marks)
        path = self._place / _SOCKET
        with mirror.listen(path) as listening:
            moment.export(monitor, listening, tuple(views))
        return [
            self._copy(drive, view, path, _far(path, drive.name))
            for drive, view in zip(drives, views, strict=True)
        ]

    def _usable(self, execute: moment.Execute, name: str) -> str:
        """Return the bitmap that tells what changed since the last backup, if it is good."""
        good = self._since and moment.bitmaps(execute, name).get(self._since, False)
        if self._since and not good:
            log.info("%s: nothing tells what changed on %s: all is read", self._env.name, name)
        return self._since if good else ""

    @contextlib.contextmanager
    def _shadow(self, drive: Drive) -> Iterator[int]:
        """Have an empty image for what is overwritten, open for the block; it has no name then."""
        kept = self._env.home / _KEPT
        kept.mkdir(mode=0o700, exist_ok=True)
        path = kept / drive.name
        path.unlink(missing_ok=True)
        image.create(path, machinedrives.size_of(self._env, drive))
        try:
            descriptor = image.open_image(path, writable=True)
        finally:
            path.unlink()
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def stopped(self, drives: tuple[Drive, ...]) -> list[Copy]:
        """Open the disks of one that does not run: most by a storage daemon each."""
        copies = []
        for drive in drives:
            if drive.keyid or drive.format == machinedrives.BUNDLE:
                copies.append(self._sealed(drive) if drive.keyid else self._bundle(drive))
                continue
            daemon = self._daemon(drive)
            writable = drive.format == "qcow2"  # a bitmap is begun in it
            blocks = machinemount.blocks_of(self._env, drive, readonly=not writable)
            daemon.start(blocks, readonly=True)
            view = View(drive.name, self._usable(daemon.execute, NODE))
            if writable:
                added = moment.added(NODE, Mark(self._mark))
                actions = [*moment.stilled(NODE, view.since), added]
                daemon.execute("transaction", {"actions": actions})
            path = self._place / f"{drive.name}.sock"
            if view.since:
                address = {"type": "unix", "data": {"path": os.fspath(path)}}
                daemon.execute("nbd-server-start", {"addr": address})
                daemon.execute("block-export-add", moment.exported(view, NODE))
            copies.append(self._opened(drive, daemon, self._changed(path, view)))
        return copies

    def _sealed(self, drive: Drive) -> Copy:
        """Open an encrypted image as it lies there."""
        path = machinedrives.source_of(self._env, drive)
        image.check(image.look(path), path, drive.format, keyed=True)
        source = capturedisk.source_of(path, 0, path.stat().st_size, self._stack)
        return Copy(drive.name, _SEALED, source, None)

    def _bundle(self, drive: Drive) -> Copy:
        """Open a ploop disk, which is part of a file; nobody else has it meanwhile."""
        still = bundle.still(machinedrives.source_of(self._env, drive))
        place = self._stack.enter_context(still)
        source = capturedisk.source_of(place.image, place.offset, place.size, self._stack)
        return Copy(drive.name, drive.format, source, None)

    def _daemon(self, drive: Drive) -> Daemon:
        daemon = Daemon(self._place / drive.name)
        daemon.stop()
        self._stack.callback(daemon.stop)
        return daemon

    def _copy(self, drive: Drive, view: View, path: Path, block: dict[str, object]) -> Copy:
        changed = self._changed(path, view)
        daemon = self._daemon(drive)
        daemon.start([block], readonly=True)
        return self._opened(drive, daemon, changed)

    def _changed(self, path: Path, view: View) -> tuple[Range, ...] | None:
        return tuple(moment.changed(path, view)) if view.since else None

    def _opened(self, drive: Drive, daemon: Daemon, changed: tuple[Range, ...] | None) -> Copy:
        size = daemon.device.stat().st_size
        if not size:
            raise StorageError(f"{drive.name} of {self._env.name} is empty")
        source = capturedisk.source_of(daemon.device, 0, size, self._stack)
        return Copy(drive.name, drive.format, source, changed)


def _far(path: Path, name: str) -> dict[str, object]:
    """Return the block node of a disk that QEMU exports."""
    server = {"type": "unix", "path": os.fspath(path)}
    return {"driver": "nbd", "node-name": NODE, "server": server, "export": name, "read-only": True}


@contextlib.contextmanager
def asked(node: Node, env: Environment, drive: Drive) -> Iterator[tuple[moment.Execute, str]]:
    """Have somebody to ask about a disk for the block: QEMU, or a daemon of its own.

    The caller holds the lease.
    """
    if env.uuid in node.machines.running():
        yield node.machines.monitor(env.uuid).execute, drive.name
        return
    daemon = Daemon(backuplease.directory(node, env.uuid) / drive.name)
    if daemon.pid is not None:
        yield daemon.execute, NODE
        return
    daemon.stop()
    daemon.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    daemon.start(machinemount.blocks_of(env, drive, readonly=False), readonly=True)
    try:
        yield daemon.execute, NODE
    finally:
        daemon.stop()


def drop_mark(node: Node, env: Environment, mark: str, drives: tuple[Drive, ...]) -> None:
    """Remove the bitmap of a backup that was not made; one that stays only costs a little."""
    for drive in drives:
        if not has_marks(node, env, drive):
            continue
        with contextlib.suppress(VZError, OSError), asked(node, env, drive) as (execute, name):
            if mark in moment.bitmaps(execute, name):
                execute("block-dirty-bitmap-remove", {"node": name, "name": mark})


def tidy(node: Node, env: Environment) -> None:
    """Take away what only a backup needs; idempotent."""
    _end(node, env)
    _remove(node, env)


def _end(node: Node, env: Environment) -> None:
    """End storage daemons, shadows and exports."""
    place = backuplease.directory(node, env.uuid)
    if place.is_dir():
        for entry in list(place.iterdir()):
            if entry.is_dir():
                Daemon(entry).stop()
    pull, copying = pulls.load(place), copies.load(place)
    if pull is not None:
        pull.server.remove()
    if env.uuid in node.machines.running():
        with contextlib.suppress(VZError):
            stills = [] if pull is None else [each.bitmap for each in pull.exports if each.since]
            monitor = node.machines.monitor(env.uuid)
            moment.end(monitor, (moment.STILL, *stills))
            if copying is not None:
                blockjob.end(monitor, copying.disk)
    if copying is not None:
        copying.remove()


def _remove(node: Node, env: Environment) -> None:
    file.remove_tree(backuplease.directory(node, env.uuid))
    if env.home.exists():
        file.remove_tree(env.home / _KEPT)


def repair(node: Node, record: Record) -> None:
    """Undo what a killed backup left of a machine, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished backup", env.name)
    tidy(node, env)
    Journal.forget(node.paths, record.uuid)


def repair_left(node: Node, env: Environment) -> None:
    """Undo what a backup has left that was killed while the lease was not its own; lease held."""
    left = backuplease.directory(node, env.uuid).exists()
    if left and not backuplease.under_way(node, env.uuid):
        log.warning("%s: cleaning up an unfinished backup", env.name)
        tidy(node, env)


# What a repository gives back


def raw(manifest: Manifest, disk: Disk) -> Disk:
    """Return a disk of a backup as a raw image of it; raises Unsupported."""
    if disk.driver == _SEALED:
        raise Unsupported(
            f"{disk.name} of the backup {manifest.tag} is encrypted",
            hint="Restore it under another name (-n), and mount that.",
        )
    return disk._replace(driver="raw")


def target_of(directory: Path, disk: Disk, image_name: str | None) -> Path:
    """Return where in the home DIRECTORY a disk of a backup belongs."""
    path = directory / (image_name or _BESIDE.get(disk.name, disk.name))
    if path.parent != directory:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    return path


def fill(disk: Disk, index: Index, target: Path, chunks: Chunks, progress: Progress) -> None:
    """Make the image (or file) of a disk of a backup; raises BackupDamaged, NoSpace."""
    if disk.driver == machinedrives.BUNDLE:
        place = bundle.create(target, disk.size)
        with filecopy.opened(place.image, os.O_RDWR) as fd:
            images.restore(index, fd, place.offset, chunks, progress)
            os.fsync(fd)
        return
    raw = target if disk.driver != "qcow2" else target.with_name(f".{target.name}.raw")
    fd = os.open(raw, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, disk.size)
        images.restore(index, fd, 0, chunks, progress)
        os.fsync(fd)
        if raw != target:
            image.convert(raw, target, "raw", progress)
    finally:
        os.close(fd)
        if raw != target:
            raw.unlink()


def drives_of(manifest: Manifest, drives: tuple[Drive, ...]) -> tuple[Drive, ...]:
    """Return the drives with the images that a backup gives back, whole and in the home."""
    known = {each.name: each for each in manifest.disks}
    found = []
    for drive in drives:
        disk = known.get(drive.name)
        if disk is None:
            found.append(drive)
            continue
        name = drive.image if drive.image and "/" not in drive.image else f"{drive.name}.hdd"
        form = "qcow2" if disk.driver == _SEALED else disk.driver
        found.append(drive._replace(image=name, base="", device="", format=form))
    return tuple(found)
