"""The disks of an environment, into a repository: what `backup` reads, and when.

A disk that is one image (ploop) is copied by reflink at one moment, with its file system frozen
for that long, and read from the copy while the environment goes on, may stop, move or be deleted.
The copy stays as the reference of the next incremental backup, which reads only what differs
between the two copies:

    <home>/.backup/<repository>/<id of the backup>@<time>/<disk>

Each repository has a reference of its own, so that backups may go to several places in turn; of
those where none was made for the longest time, they are given up.

Disks that keep their snapshots inside (qcow2) are read at one of them when there are several.

A disk that is a tree is read twice: first while the container runs, then, with its processes
halted, only what changed since.  The lease is held for all that time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pyvz.backup import catalog, content
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.manifest import TREE, Disk, Manifest
from pyvz.backup.tree import Known, Walk
from pyvz.errors import BackupDamaged, PrivateMissing, Unsupported
from pyvz.linux import file, mount, syscall
from pyvz.linux.extents import Range
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations import capturedisk, home, ownshot
from pyvz.operations.capturedisk import Copy
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB: Final = "backup"  # of the journal records that `repair` understands
_KEPT: Final = ".backup"
_HALTED: Final = "halted"
_SHOT: Final = "{70797a76-0000-4261-8000-000000000000}"  # of a disk that is read at a snapshot
_MOST: Final = 3  # repositories with a reference: each may hold on to what changed since


class Images:
    """The images of an environment, open, all of one moment.  kept: where copies of them are."""

    def __init__(self, copies: list[Copy], kept: Path | None = None) -> None:
        self._kept = kept
        self._copies = copies

    def back_up(
        self, writer: Writer, chunks: Chunks, parent: Manifest | None, progress: Progress
    ) -> tuple[Disk, ...]:
        """Store every disk; of those that PARENT has, only what changed since.  No lease needed."""
        return capturedisk.back_up(self._copies, (writer, chunks), parent, progress)

    def keep(self, *, reference: bool) -> None:
        """After the commit: our copies become the reference (or go); the older ones go."""
        directory = self._kept.parent if self._kept is not None else None
        if directory is None or not directory.is_dir():  # deleted or moved away meanwhile
            return
        for entry in list(directory.iterdir()):
            if not (reference and entry == self._kept):
                file.remove_tree(entry)


@contextlib.contextmanager
def images_of(
    node: Node,
    env: Environment,
    plan: tuple[Manifest, Manifest | None],
    place: tuple[str, Sequence[Manifest]],
) -> Iterator[Images]:
    """Copy the images of all disks and yield them open; the caller holds the lease until then.

    plan: the backup to make, and the one before.  place: a name of the repository, and the backups
    that it has.  When the block raises, the
    copies go; those of a backup that was killed, of which the repository has none, go now.
    """
    draft, parent = plan
    repository, known = place
    directory = env.home / _KEPT / repository / draft.reference
    with contextlib.ExitStack() as stack:
        undo = stack.enter_context(contextlib.ExitStack())
        undo.callback(_discard, directory)
        with home.storage_errors(f"The disks of {env.name} could not be copied"):
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(directory.parent, {each.reference for each in known})
            directory.mkdir(mode=0o700)
            copies = _copies(node, env, directory, (parent, stack))
        yield Images(copies, directory)
        undo.pop_all()


def _sweep(own: Path, known: set[str]) -> None:
    """Remove copies of the repository's directory that are no reference, and the oldest others."""
    for entry in list(own.iterdir()):
        if entry.name not in known:
            file.remove_tree(entry)
    others = [entry for entry in own.parent.iterdir() if entry != own]
    others.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in others:  # "@": of an earlier version, which had one for all
        if "@" in entry.name or entry in others[_MOST - 1 :]:
            file.remove_tree(entry)


def _discard(directory: Path) -> None:
    with contextlib.suppress(OSError):
        file.remove_tree(directory)
        directory.parent.rmdir()
        directory.parent.parent.rmdir()


def _copies(
    node: Node,
    env: Environment,
    directory: Path,
    context: tuple[Manifest | None, contextlib.ExitStack],
) -> list[Copy]:
    parent, stack = context
    driver = storage.find(env.home)
    parts = {}
    with _of_one_moment(node, env, driver) as names:
        for name in names:
            parts[name] = driver.copy_image(env.home, directory / name, disk=name)
    copies = []
    for name, (offset, size) in parts.items():
        path = directory / name
        path.chmod(0o400)
        source = capturedisk.source_of(path, offset, size, stack)
        told = _changed(env, driver, path, parent)
        changed = None if told is None else [Range(start + offset, size) for start, size in told]
        copies.append(Copy(name, driver.name, source, changed))
    return copies


def _changed(
    env: Environment, driver: storage.StorageDriver, path: Path, parent: Manifest | None
) -> Sequence[tuple[int, int]] | None:
    """Return what differs from the copy that PARENT was made of; None: nothing tells."""
    if capturedisk.disk_of(parent, path.name, driver.name) is None:
        return None
    assert parent is not None  # noqa: S101  it has the disk
    reference = path.parent.parent / parent.reference / path.name
    if not reference.is_file() or reference.is_symlink():
        log.info("%s: no reference of %s: all is read", env.name, path.name)
        return None
    try:
        return driver.image_changes(reference, path)
    except Unsupported as error:
        log.info("%s: %s: all is read", env.name, error)
        return None


@contextlib.contextmanager
def _of_one_moment(
    node: Node, env: Environment, driver: storage.StorageDriver
) -> Iterator[list[str]]:
    """Yield the disks of a home, while nothing writes to any of them if there are several."""
    several = driver.capabilities(env.home).disks
    names = [storage.ROOT_DISK]
    if several:
        names = storage.many_disks(driver, env.home).disks(env.home)
    with contextlib.ExitStack() as halt:
        if len(names) > 1:  # one freezes by itself; several must be of one moment
            journal = halt.enter_context(_journal(node, env))
            halt.enter_context(_halted(node, env, journal))
        yield names


@contextlib.contextmanager
def shots_of(node: Node, env: Environment) -> Iterator[Images]:
    """Open all disks of a home as they are at one moment, by snapshots that go with the block.

    All of them is read each time; only what the repository does not have is stored.  The caller
    holds the lease for all of the block.
    """
    driver = storage.find(env.home)
    ownshot.forget(env.home, (_SHOT,))  # of a backup that was killed
    with contextlib.ExitStack() as stack:
        stack.callback(ownshot.forget, env.home, (_SHOT,))
        with home.storage_errors(f"The disks of {env.name} could not be read"):
            with _of_one_moment(node, env, driver) as names:
                for name in names:
                    driver.snapshot(env.home, _SHOT, disk=name)
            copies = []
            for name in names:
                reading = driver.read_snapshot(env.home, _SHOT, disk=name)
                path, offset, size = stack.enter_context(reading)
                source = capturedisk.source_of(path, offset, size, stack)
                copies.append(Copy(name, driver.name, source, None))
        yield Images(copies)


def tree_of(
    node: Node,
    env: Environment,
    store: tuple[Writer, Chunks],
    parent: Manifest | None,
    progress: Progress,
) -> Disk:
    """Store the tree of an environment whose disk is a directory; the caller holds the lease."""
    writer, chunks = store
    driver = storage.find(env.home)
    running = env.uuid in node.runtime.running(env.uuid)
    known = _known(parent, chunks)
    with (
        _journal(node, env) as journal,
        _shown(node, env) as root,
        _opened(root) as fd,
    ):
        progress.stage(f"Backing up {env.name}")
        began = time.time_ns()
        if running:
            # Pages that are mapped and dirty change without a trace until they were written out
            # once: then the next write is a fault, which renews the times (page_mkwrite).
            syscall.syncfs(fd)
        walk = Walk(fd, writer, progress, known)
        entries = walk.run()
        if running:
            with _halted(node, env, journal):
                progress.stage(f"Backing up {env.name}: what changed meanwhile")
                # What is mapped and dirty now would change without a trace before the next backup.
                syscall.syncfs(fd)
                first: Known = {entry.path: entry for entry in entries if entry.is_file}
                walk = Walk(fd, writer, progress, first, since=began)
                entries = walk.run()
        pages = catalog.store(entries, writer)
    return Disk(storage.ROOT_DISK, TREE, driver.name, walk.size, _limit(env), pages)


def _known(parent: Manifest | None, chunks: Chunks) -> Known:
    """Return the files of the earlier backup; none when its catalog cannot be read."""
    disk = next((d for d in parent.disks if d.form == TREE), None) if parent else None
    if disk is None:
        return {}
    try:
        return {entry.path: entry for entry in content.catalog_of(disk, chunks) if entry.is_file}
    except BackupDamaged as error:
        log.warning("an earlier backup is of no use: %s", error)
        return {}


def _limit(env: Environment) -> int | None:
    """Return the size that a restored disk needs, where the driver keeps one."""
    return storage.limit(storage.find(env.home), env.home)


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _shown(node: Node, env: Environment) -> Iterator[Path]:
    """Yield the mounted root; one that is not mounted is, read-only, for the block."""
    root = node.root(env)
    if mount.is_mount_point(root):
        yield root
        return
    place = _place(node, env.uuid)
    driver = storage.find(env.home)
    driver.mount(env.home, place, readonly=True)
    try:
        yield place
    finally:
        driver.umount(env.home, place)
        _take_away(place)


def _place(node: Node, uuid: str) -> Path:
    return node.paths.aside / f"{uuid}.backup"


def _take_away(place: Path) -> None:
    mount.umount(place)
    with contextlib.suppress(OSError):
        place.rmdir()


@contextlib.contextmanager
def _journal(node: Node, env: Environment) -> Iterator[Journal]:
    """Announce a backup for the block: `repair` undoes what a death in it leaves."""
    journal = Journal.begin(node.paths, env.uuid, VERB, home.to_data(env))
    try:
        yield journal
    finally:
        journal.done()


@contextlib.contextmanager
def _halted(node: Node, env: Environment, journal: Journal) -> Iterator[None]:
    """Halt the processes of a running container for the block; one that is paused stays so."""
    if env.uuid not in node.runtime.running(env.uuid) or node.cgroups.frozen(env.uuid):
        yield
        return
    journal.note(_HALTED)
    try:
        node.runtime.pause(env.uuid)
        yield
    finally:
        node.runtime.unpause(env.uuid)


def repair(node: Node, record: Record) -> None:
    """Undo what a killed backup left of an environment, and close its record; repeatable."""
    running = record.uuid in node.runtime.running(record.uuid)
    if record.step(_HALTED) and running and node.cgroups.frozen(record.uuid):
        log.warning("%s was halted by a backup that was killed: it goes on", record.uuid)
        node.runtime.unpause(record.uuid)
    _take_away(_place(node, record.uuid))
    with contextlib.suppress(PrivateMissing):
        ownshot.forget(home.from_data(record.uuid, record.data).home, (_SHOT,))
    Journal.forget(node.paths, record.uuid)
