"""One qcow2 disk on disk: its image, the daemon above it, and what is left by a crash.

    <home>/qcow2/disk.qcow2     the disk; its snapshots are inside
    <home>/qcow2/lock           held by every change, and by the programs that make it
    <home>/qcow2/open           there while the disk is attached read-write: not closed yet
    <home>/qcow2/daemon/        of the storage daemon (storage/daemon.py)
    <home>/qcow2/view.{guid}/   of the daemon that shows a snapshot, read-only

Disks beside the root disk are the same in a directory hddN.hdd of the home.

A death leaves at most space that nothing refers to and flags that do not fit the counts of
references; `qemu-img check -r leaks` puts both right, and must do so before anything is written.
Then the file system is checked as after a crash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pyvz.errors import (
    AlreadyMounted,
    Busy,
    CommandFailed,
    NoSpace,
    NotFound,
    StorageError,
    VZError,
)
from pyvz.image import qcow2
from pyvz.image.report import Report
from pyvz.linux import file, filesystem, mount, run
from pyvz.linux.loopdevice import Loop
from pyvz.storage import attach, ploopdisk, qcow2stack
from pyvz.storage.daemon import NODE, Daemon, Node
from pyvz.storage.daemontest import file_node

log = logging.getLogger(__name__)

FOLDER: Final = "qcow2"  # of the root disk, in the home
IMAGE: Final = "disk.qcow2"
_PROGRAM_TIMEOUT: Final = 3600.0
_LITTLE: Final = 8 << 20  # bytes; with less a failure is one of space


class Disk:
    """The disk in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image = path / IMAGE
        self.daemon = Daemon(path / "daemon")
        self._mark = path / "open"
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        """Whether the image is there, no link, and what lies below it."""
        if not self.image.is_file() or self.path.is_symlink() or self.image.is_symlink():
            return False
        below = self.stack
        return below is None or below.exists

    @property
    def stack(self) -> qcow2stack.Stack | None:
        """The ploop disk on which it stands, if it does."""
        return qcow2stack.read(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the disk against others, also against a program that somebody killed has begun."""
        with file.flock(self.path / "lock", timeout=ploopdisk.LOCK_TIMEOUT) as fd:
            self._lock = fd
            try:
                yield
            finally:
                self._lock = None

    def tool(self, *words: str | Path) -> str:
        """Run qemu-img, which keeps the lock for as long as it works; return what it says."""
        kept = () if self._lock is None else (self._lock,)
        with spaceless(self.path):
            return run.run(["qemu-img", *words], timeout=_PROGRAM_TIMEOUT, pass_fds=kept).stdout

    def change(self, *words: str | Path) -> None:
        """Let qemu-img change the image, which counts as open meanwhile.

        Killed in the middle of a snapshot it leaves counts and flags that do not fit together: the
        next opening puts them right, and must know.
        """
        self.begin_unclean()
        self.tool(*words)
        self.closed()

    # -- devices and mounts

    def mounted(self) -> list[mount.MountEntry]:
        """Return where in this mount namespace the disk is mounted."""
        return attach.mounted(self.daemon)

    def check_idle(self) -> None:
        """End a daemon that nothing stands on; raise AlreadyMounted, Busy when it is in use."""
        if places := self.mounted():
            raise AlreadyMounted(f"{self.path} is mounted at {places[0].target}")
        attach.finish(self.daemon, ploopdisk.STALE_TIMEOUT)

    def failed(self) -> str:
        """Return why a mounted disk does not work any more; empty when it does or is not."""
        if not self.daemon.directory.is_dir() or self.daemon.pid is not None:
            return ""
        return f"the storage daemon of {self.image} has died" if self.mounted() else ""

    @contextlib.contextmanager
    def shown(self, *, readonly: bool = False) -> Iterator[tuple[Loop, str]]:
        """Show the disk as a device for the block, or as long as what was mounted on it stays.

        Yields it and the kind of file system.  Raises StorageError when there is none that we know.
        """
        nodes, below = self.below()
        nodes.append(file_node(self.image, readonly=readonly))
        nodes.append({**format_node(readonly=readonly), "backing": below})
        place = pool_of(self.path)
        if not readonly:
            self.begin_unclean()
        with attach.shown(self.daemon, nodes, place, readonly=readonly) as loop:
            yield loop, filesystem.kind_at(loop.device) or ""
        if not readonly and not self.mounted():
            self.closed()

    @contextlib.contextmanager
    def device(self, *, readonly: bool = False) -> Iterator[tuple[Loop, str]]:
        """As `shown`, of an image that is sound and has a file system."""
        qcow2.require(self.image)
        self.make_whole()
        with self.shown(readonly=readonly) as (loop, kind):
            if not kind:
                raise StorageError(f"There is no file system of a known kind in {self.image}")
            yield loop, kind

    def below(self, directory: Path | None = None) -> tuple[list[Node], str | None]:
        """Return the block nodes of the ploop disk on which it stands, and the name of the last.

        directory: where files may be made for that.
        """
        stack = self.stack
        return (stack.nodes(directory or self.path, self.tool), "stack") if stack else ([], None)

    def shot(self, guid: str) -> qcow2stack.Stack | None:
        """Return a snapshot of the ploop disk on which it stands."""
        with contextlib.suppress(NotFound):
            return self.stack.at(guid) if self.stack else None
        return None

    def space(self) -> filesystem.Space:
        """Return what the superblock of the disk, which is not mounted, says."""
        if self.stack:
            with self.served() as raw:
                return filesystem.space_at(raw, attach.part(raw)[0])
        with qcow2.image(self.image) as found:
            return filesystem.space_in(found.read(found.now, 0, filesystem.HEAD), self.image)

    @contextlib.contextmanager
    def served(self, *, readonly: bool = True) -> Iterator[Path]:
        """Show the disk, which nobody has open, as a raw file for the block."""
        self.check_idle()
        nodes, below = self.below()
        nodes.append(file_node(self.image, readonly=readonly))
        nodes.append({**format_node(readonly=readonly), "backing": below})
        if not readonly:
            self.begin_unclean()
        self.daemon.start(nodes, readonly=readonly)
        try:
            yield self.daemon.device
        finally:
            attach.finish(self.daemon)
        if not readonly:
            self.closed()

    def begin_unclean(self) -> None:
        """Note that the image, or its file system, may not be whole."""
        self._mark.touch(mode=0o600)
        file.fsync_directory(self.path)

    def closed(self) -> None:
        """Note that everything is written and nobody has the image open."""
        self._mark.unlink(missing_ok=True)

    def finish(self) -> None:
        """After the last unmount: wait for the device, end the daemon in order."""
        dead = self.daemon.pid is None
        attach.finish(self.daemon)
        if not dead:
            self.closed()

    # -- soundness

    def make_whole(self) -> None:
        """Check the image before it is opened; after a crash, repair it and its file system."""
        unclean = self._mark.exists()
        report = self.check(repair="leaks" if unclean else "")
        if report.leaks and not report.errors:  # of a program that was killed
            report = self.check(repair="leaks")
        if report.errors:
            raise StorageError(
                f"{self.image} is damaged",
                details="\n".join(report.errors),
                hint="qemu-img check -r all repairs what can be repaired; copy the image before.",
            )
        if not unclean:
            return
        log.warning("%s was not closed cleanly: checking it", self.image)
        with self.shown() as (loop, kind):
            if kind == "ext4" and not filesystem.check(loop.device, kind):
                raise StorageError(f"The file system in {self.image} is damaged")
            if kind == "xfs":
                os.close(filesystem.mount_mortal(loop.device, kind))

    def check(self, *, repair: str = "") -> Report:
        """Let QEMU check the tables of an image that nobody has open.  repair: "leaks", "all"."""
        if repair != "all":
            qcow2.require(self.image)
        words = ["check", "--output=json", "-f", "qcow2", *(["-r", repair] if repair else [])]
        kept = () if self._lock is None else (self._lock,)
        argv: list[str | Path] = ["qemu-img", *words, self.image]
        result = run.run(argv, timeout=_PROGRAM_TIMEOUT, pass_fds=kept, check=False)
        try:
            found = json.loads(result.stdout)
        except ValueError:
            raise run.failure(["qemu-img"], result) from None
        return _report(found)

    def snapshots(self) -> tuple[qcow2.Snapshot, ...]:
        """Return the snapshots in the image."""
        return qcow2.require(self.image).snapshots

    def view(self, guid: str) -> View:
        """Return where a snapshot is shown."""
        return View(self, guid)

    def views(self) -> list[View]:
        """Return the snapshots that are shown, or of which somebody's death has left something."""
        found = []
        for entry in self.path.iterdir():
            kind, _, guid = entry.name.partition(".")
            if kind in {"view", "header"}:
                found.append(View(self, guid))
        return found


class View:
    """A snapshot of a disk as a disk of its own, read-only, also while the disk is written to.

    QEMU opens no snapshot inside an image.  But one is the same image with another header, so the
    daemon gets the image, read-only, below an overlay that has nothing but that header.  What a
    snapshot refers to is never written in place, so the image may be open elsewhere (no locking).
    """

    def __init__(self, disk: Disk, guid: str) -> None:
        self._disk = disk
        self._guid = guid
        self.daemon = Daemon(disk.path / f"view.{guid}")
        self._files = disk.path / f"header.{guid}"

    @contextlib.contextmanager
    def shown(self) -> Iterator[tuple[Loop, str]]:
        """Show it as a device for the block, or as long as what was mounted on it stays."""
        place = pool_of(self._disk.path)
        with attach.shown(self.daemon, self._nodes(), place, readonly=True) as loop:
            yield loop, filesystem.kind_at(loop.device) or ""
        if not self.mounted():
            self._forget()

    @contextlib.contextmanager
    def served(self) -> Iterator[Path]:
        """Show it as a raw file for the block; one that is mounted has that file already."""
        if self.mounted():
            yield self.daemon.device
            return
        attach.finish(self.daemon)
        self.daemon.start(self._nodes(), readonly=True)
        try:
            yield self.daemon.device
        finally:
            self.finish()

    def _nodes(self) -> list[Node]:
        if shot := self._disk.shot(self._guid):
            self._forget()
            self._files.mkdir(mode=0o700)
            nodes = shot.nodes(self._files, self._disk.tool)
            return [*nodes, {"driver": "raw", "node-name": NODE, "file": "stack"}]
        overlay = self._overlay()
        nodes, below = self._disk.below(self._files)
        base = file_node(self._disk.image, readonly=True, locking=False)
        return [
            *nodes,
            {**base, "node-name": "base"},
            file_node(overlay, readonly=True),
            {**format_node(readonly=True), "node-name": "image", "backing": "base"},
            {**format_node(readonly=True), "file": "image", "backing": below},
        ]

    def finish(self) -> None:
        """After the unmount; nothing there is fine.  Raises Busy."""
        attach.finish(self.daemon)
        self._forget()

    def mounted(self) -> list[mount.MountEntry]:
        """Return where in this mount namespace the snapshot is mounted."""
        return attach.mounted(self.daemon)

    def _overlay(self) -> Path:
        """Make the image whose first 4 KiB are the header, the rest what lies below."""
        self._forget()
        with qcow2.image(self._disk.image) as found:
            header = found.view_header(found.state(self._guid))
            size = -(-found.file_size // found.cluster) * found.cluster
        self._files.mkdir(mode=0o700)
        (self._files / "header").write_bytes(header)
        overlay = self._files / "overlay.qcow2"
        # With 32 pieces to a cluster the header is one piece, and does not hide what follows it.
        self._disk.tool("create", "-q", "-f", "qcow2", "-o", OPTIONS, overlay, str(size))
        command = f"write -q -s header 0 {len(header)}"
        run.run(["qemu-io", "-f", "qcow2", "-c", command, overlay.name], cwd=self._files)
        return overlay

    def _forget(self) -> None:
        file.remove_tree(self._files)


OPTIONS: Final = "compat=1.1,cluster_size=128k,extended_l2=on,lazy_refcounts=off"


def format_node(*, readonly: bool = False) -> Node:
    """Return the block node NODE: the image above `file`, whatever it says of a backing file."""
    return {
        **{"driver": "qcow2", "node-name": NODE, "file": "file", "backing": None},
        **{"read-only": readonly, "discard": "unmap"},
    }


def pool_of(directory: Path) -> Path:
    """Return the pool of a disk's directory, which is in a home, in staging beside or in one.

    A data disk may lie outside of every home: then it is the directory where that one lies.
    """
    above = directory.parent
    staging = above.name.startswith(".")
    if not staging and FOLDER not in directory.name and not (above / FOLDER).is_dir():
        return above
    place = above.parent
    return place.parent if (place / "ve.conf").exists() else place


def empty(directory: Path) -> Disk:
    """Return the disk of `directory` made anew; what an interrupted step left there is removed."""
    disk = Disk(directory)
    clear(disk)
    directory.mkdir(mode=0o700)
    return disk


def clear(disk: Disk) -> None:
    """End the daemon of a disk that is nobody's, and remove it."""
    attach.finish(disk.daemon)
    file.remove_tree(disk.path)


def discard(new: Disk) -> None:
    """Remove what a failed step made; its error is what matters."""
    with contextlib.suppress(VZError, OSError):
        clear(new)


@contextlib.contextmanager
def spaceless(place: Path) -> Iterator[None]:
    """Turn a failure into NoSpace when the pool is full: what stands between tells it as EIO."""
    try:
        yield
    except NoSpace:
        raise
    except (StorageError, CommandFailed, OSError) as error:
        space = os.statvfs(place)
        if isinstance(error, Busy) or space.f_bavail * space.f_frsize > _LITTLE:
            raise
        raise NoSpace(f"{place} has no space left", details=str(error)) from error


def _report(found: dict[str, object]) -> Report:
    def number(key: str) -> int:
        value = found.get(key)
        return value if isinstance(value, int) else 0

    def words(pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        return tuple(f"{number(key)} {text}" for key, text in pairs if number(key))

    return Report(
        words([("corruptions", "errors in the tables"), ("check-errors", "errors while checking")]),
        words([("leaks", "clusters belong to nothing")]),
        words([("corruptions-fixed", "errors in the tables"), ("leaks-fixed", "leaked clusters")]),
    )
