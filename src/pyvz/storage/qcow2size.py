"""A qcow2 disk gets its size: made, grown, mounted or not, and made smaller.

Growing goes from the outside in, shrinking from the inside out, so that a crash between two steps
leaves a file system that is smaller than its disk.  Asked again, a step that is done does nothing.
A disk that stands on a thin one of OpenVZ has a partition table as a rule, whose end moves along.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pyvz.errors import InvalidState, StorageError, Unsupported
from pyvz.image import gpt, qcow2
from pyvz.image.file import opened
from pyvz.linux import archive, filesystem, loopdevice
from pyvz.model.task import Progress
from pyvz.storage import attach, newfilesystem, ploopdisk
from pyvz.storage.base import Fill, NewFileSystem
from pyvz.storage.daemon import NODE
from pyvz.storage.qcow2disk import OPTIONS, Disk
from pyvz.storage.shots import FillShots, Shots

GRAIN: Final = 1 << 20  # sizes are whole MiB


def build(
    disk: Disk,
    size: int,
    source: Path | None,
    progress: Progress,
    made: NewFileSystem = NewFileSystem(),  # noqa: B008  a value
) -> None:
    """Make the image and a file system in it, and unpack `source` there; raises NoSpace."""
    kind = newfilesystem.kind(made.kind, size)
    inodes = made.inodes if kind == "ext4" else None  # xfs makes them as they are needed
    disk.tool("create", "-q", "-f", "qcow2", "-o", OPTIONS, disk.image, str(size))
    with disk.shown() as (loop, _):
        filesystem.make(loop.device, kind, inodes=inodes)
        mounted = filesystem.mount_mortal(loop.device, kind)
        try:
            root = Path(f"/proc/{os.getpid()}/fd/{mounted}")
            root.chmod(0o755)
            if source is not None:
                archive.unpack(source, root, progress)
            filesystem.sync(mounted)
        finally:
            os.close(mounted)


def fill(disk: Disk, size: int, work: Fill) -> None:
    """Make the image and let `work(fd, 0)` write its content, which may be a mounted one's.

    So it counts as not closed: the first mount checks the file system.
    """
    disk.tool("create", "-q", "-f", "qcow2", "-o", OPTIONS, disk.image, str(size))
    with disk.served(readonly=False) as raw, opened(raw, write=True) as fd:
        work(fd, 0)
        os.fsync(fd)
    disk.begin_unclean()


def fill_shots(disk: Disk, size: int, shots: Shots, work: FillShots) -> None:
    """As `fill`, with a snapshot inside at each point, as large as the disk was then."""
    left = list(shots.images)
    now = left[0].size
    disk.tool("create", "-q", "-f", "qcow2", "-o", OPTIONS, disk.image, str(now))
    with disk.served(readonly=False) as raw, opened(raw, write=True) as fd:

        def keep() -> None:
            nonlocal now
            os.fsync(fd)
            what = {"device": NODE, "name": left.pop(0).guid}
            disk.daemon.execute("blockdev-snapshot-internal-sync", what)
            if (wanted := left[0].size if left else size) > now:
                disk.daemon.resize(wanted)
                now = wanted

        work(fd, 0, keep)
        os.fsync(fd)
    if left:
        raise StorageError("Not all snapshots of the disk have come")
    disk.begin_unclean()


def grow(disk: Disk, size: int) -> None:
    """Make the image larger first: a file system that is smaller than its disk is whole."""
    places = disk.mounted()
    if places:
        _grow_mounted(disk, places[0].target, size)
        return
    disk.check_idle()
    disk.make_whole()
    if size > qcow2.require(disk.image).now.size:
        disk.change("resize", "-q", "-f", "qcow2", disk.image, str(size))
    if disk.stack:
        with disk.served(readonly=False) as raw:
            _move_end(raw, size)
    with disk.device() as (loop, kind):
        inside = size - _around(disk.daemon.device, size)
        if inside > filesystem.space_at(loop.device).spanned + GRAIN:
            filesystem.resize_offline(loop.device, kind, inside)


def _grow_mounted(disk: Disk, target: str, size: int) -> None:
    (loop, *_) = attach.loops(disk.daemon)
    kind = filesystem.kind_at(loop.device) or ""
    if kind == "ext4" and not filesystem.can_grow_ext4_online():
        raise Unsupported(
            "ext4 cannot be grown while it is mounted on this node (no CAP_SYS_RESOURCE)",
            hint="Stop the container and try again.",
        )
    disk.daemon.resize(size)
    if disk.stack:
        _move_end(disk.daemon.device, size)
    inside = size - _around(disk.daemon.device, size)
    loopdevice.resize(loop.device, inside)
    with ploopdisk.directory(target) as mounted:
        filesystem.grow_online(mounted, kind, inside)


def _move_end(raw: Path, size: int) -> None:
    """Have the partition table, if there is one, span `size` bytes."""
    with opened(raw, write=True) as fd:
        old = gpt.find(fd, 0, size)
        if old is not None and gpt.write(fd, 0, size, old) != old:
            os.fsync(fd)


def _around(raw: Path, size: int) -> int:
    """Return how many bytes of the disk are not of the file system."""
    with opened(raw) as fd:
        found = gpt.find(fd, 0, size)
    return 0 if found is None else size - found.size


def shrink(disk: Disk, size: int) -> None:
    """Make the file system smaller first, then cut the image."""
    if disk.stack:
        raise Unsupported(
            "A disk that stands on a thin ploop disk cannot be made smaller",
            hint="Bring it back first: prlctl convert CT --layout ploop.",
        )
    if disk.mounted():
        raise InvalidState(
            "A disk cannot be made smaller while it is mounted", hint="Stop the container."
        )
    disk.check_idle()
    if disk.snapshots():
        raise InvalidState(
            "A disk with snapshots cannot be made smaller", hint="Delete the snapshots."
        )
    with disk.device() as (loop, kind):
        if kind != "ext4":
            raise Unsupported(f"A disk with {kind} in it cannot be made smaller")
        filesystem.resize_offline(loop.device, kind, size)
    disk.change("resize", "-q", "--shrink", "-f", "qcow2", disk.image, str(size))
