"""One ploop disk on disk: its directory, its descriptor, its images, and the devices above them.

    <home>/root.hdd/DiskDescriptor.xml          which images there are, the tree of snapshots
                    DiskDescriptor.xml.lck      the lock of every change (ploop's own name for it)
                    root.hds                    the image that takes the writes
                    root.hds.{guid}             snapshots: whole images that share blocks with it
                    templates/                  records of templates (template/record.py)

Images are in the identity form: the disk is the file from `data_offset` on, shown by a plain loop
device with direct I/O.  The device clears itself when the last mount of it goes.  A disk that came
from OpenVZ has a partition table in it; then the device shows the partition.

The descriptor is the commit of every change: a file that it does not name is what a killed change
left, and goes with the next one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import AlreadyMounted, Busy, MountError, StorageError, VZError
from pyvz.image import descriptor, disk, gpt, identity
from pyvz.image.disk import Descriptor
from pyvz.image.file import opened as opened_file
from pyvz.linux import file, filecopy, filesystem, imagelock, loopdevice, mount
from pyvz.linux.loopdevice import Loop
from pyvz.model.task import NoProgress, Progress
from pyvz.storage import base, quotamount

log = logging.getLogger(__name__)

LOCK_TIMEOUT: Final = 30.0
DETACH_TIMEOUT: Final = 30.0
SNAPSHOT_TIMEOUT: Final = 30.0  # seconds that writers may wait for a snapshot
STALE_TIMEOUT: Final = 30.0  # seconds for a device of a mount that just went away
_DAMAGED: Final = frozenset({"EUCLEAN", "EIO", "EFSCORRUPTED", "EBADMSG", "EINVAL"})


class Part(NamedTuple):
    """Where the file system lies in an image file, in bytes, and its kind (None: none there)."""

    offset: int
    size: int
    kind: str | None


class Disk:
    """The disk in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether the directory is there with a descriptor in it, and is no link."""
        return (
            self.path.is_dir()
            and not self.path.is_symlink()
            and (self.path / descriptor.NAME).is_file()
        )

    def descriptor(self) -> Descriptor:
        """Return the descriptor; raises FileMissing, StorageError."""
        return descriptor.load(self.path / descriptor.NAME)

    def save(self, value: Descriptor) -> None:
        """Write the descriptor: the commit of a change."""
        descriptor.save(self.path / descriptor.NAME, value)

    def top(self) -> Path:
        """Return the image that takes the writes."""
        value = self.descriptor()
        return self.path / value.file_of(value.top)

    def image(self, guid: str) -> Path:
        """Return the image of a snapshot; raises NotFound."""
        return self.path / self.descriptor().file_of(guid)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the disk against other programs; raises Locked."""
        with file.flock(self.path / f"{descriptor.NAME}.lck", timeout=LOCK_TIMEOUT):
            yield

    def sweep(self) -> None:
        """Remove images that a killed change left: the descriptor does not name them."""
        known = {image.file for image in self.descriptor().images}
        for entry in os.scandir(self.path):
            # Only names that we give: root.hds.backup is somebody's own file.
            ours = entry.name == disk.BASE_FILE or entry.name.startswith(
                (f"{disk.BASE_FILE}.{{", f".{disk.BASE_FILE}.")
            )
            if ours and entry.name not in known:
                log.warning("%s: removed, nothing refers to it", entry.path)
                Path(entry.path).unlink()

    def keep(self, guid: str) -> None:
        """Make the snapshot GUID, a copy of the top, to which nobody writes meanwhile.

        Raises AlreadyExists, NoSpace; the caller holds the lock.
        """
        self.sweep()
        name = f"{disk.BASE_FILE}.{disk.normal_guid(guid)}"
        new = self.descriptor().with_snapshot(guid, name)
        copy(self.top(), self.path / name, NoProgress())
        try:
            identity.clear_in_use(self.path / name)
            self.save(new)
        except BaseException:
            (self.path / name).unlink()
            raise

    # -- devices and mounts

    def loops(self) -> list[Loop]:
        """Return the devices that show the top image."""
        return loopdevice.find(self.top())

    def mounted(self) -> list[mount.MountEntry]:
        """Return where in this mount namespace the disk is mounted."""
        numbers = {(loop.major, loop.minor) for loop in self.loops()}
        return [entry for entry in mount.mounts() if entry.device in numbers] if numbers else []

    def check_idle(self) -> None:
        """Raise AlreadyMounted, or Busy naming who holds a device, when the disk is in use."""
        self.check_unmounted()
        if imagelock.held(self.top()):
            raise Busy(f"{self.path} is the disk of a virtual machine that runs")

    def check_unmounted(self) -> None:
        """Raise AlreadyMounted, or Busy, when a device of this node shows the disk."""
        if places := self.mounted():
            raise AlreadyMounted(f"{self.path} is mounted at {places[0].target}")
        self.wait_detached(STALE_TIMEOUT)

    def wait_detached(self, timeout: float = DETACH_TIMEOUT) -> None:
        """Wait until no device shows the top image; raises Busy."""
        wait_detached(self.top(), timeout)


def wait_detached(image: Path, timeout: float = DETACH_TIMEOUT) -> None:
    """Wait until no device shows `image`; raises Busy, naming who holds it."""
    for loop in loopdevice.find(image):
        backing = loopdevice.backing_of(loop.minor)
        if backing is not None:
            loopdevice.wait_gone(loop.minor, backing, timeout)


def part_of(image: Path) -> Part:
    """Return where in the image file the file system is; raises StorageError."""
    offset, size = identity.data_offset(image), identity.size(image)
    if (found := partition_of(image)) is not None:
        offset, size = offset + found.offset, found.size
    return Part(offset, size, filesystem.kind_at(image, offset))


def partition_of(image: Path) -> gpt.Partition | None:
    """Return the partition of a disk that has a table; StorageError for a damaged one."""
    with opened_file(image) as fd:
        return gpt.find(fd, identity.data_offset(image), identity.size(image))


@contextlib.contextmanager
def attached(image: Path, *, readonly: bool = False) -> Iterator[tuple[Loop, str]]:
    """Show the file system of an image as a device for the block; yields it and its kind.

    Afterwards the device is gone, unless something that was mounted meanwhile holds it.
    Raises StorageError when there is no file system that we know.
    """
    part = part_of(image)
    if part.kind is None:
        raise StorageError(f"There is no file system of a known kind in {image}")
    sector = filesystem.sector_at(image, part.offset)
    shown = loopdevice.attached(image, part.offset, part.size, readonly=readonly, sector=sector)
    with shown as loop:
        if not loop.direct_io:
            log.info("%s: the node's page cache is used: no direct I/O there", image)
        yield loop, part.kind


def mount_image(
    image: Path,
    target: Path,
    options: base.MountOptions = base.MountOptions(),  # noqa: B008  a value
    *,
    readonly: bool = False,
) -> None:
    """Mount the top image at `target`; one that was not closed cleanly is checked first.

    Raises MountError, StorageError (damaged beyond an automatic repair).
    """
    unclean = identity.in_use(image)
    if unclean:
        recover(image)
    if readonly:
        _mount_unwritten(image, target, options.words)
        return
    identity.set_in_use(image)
    try:
        with attached(image) as (loop, kind):
            device = (loop.device, kind)
            mounter = functools.partial(_mounted, image, *device)
            place(quotamount.mounted(image, device, options, mounter), target)
    except BaseException:
        with contextlib.suppress(VZError):
            wait_detached(image)
            identity.clear_in_use(image)
        raise


def _mount_unwritten(image: Path, target: Path, words: tuple[str, ...]) -> None:
    """Mount without writing; a log (a frozen xfs leaves one) is replayed before."""
    try:
        _mount_readonly(image, target, lambda _: words)
    except MountError as error:
        if error.details != "EROFS":
            raise
        recover(image)
        _mount_readonly(image, target, lambda _: words)


def _mount_readonly(image: Path, target: Path, options: Callable[[str], tuple[str, ...]]) -> None:
    """Mount with the options for the kind of file system that is found."""
    with attached(image, readonly=True) as (loop, kind):
        words = options(kind)
        place(filesystem.mount_detached(loop.device, kind, readonly=True, options=words), target)


def mount_readonly(image: Path, target: Path) -> None:
    """Mount a snapshot's image at `target` without writing to it, not even its journal."""
    _mount_readonly(image, target, unreplayed)


def unreplayed(kind: str) -> tuple[str, ...]:
    """Return the options with which a file system is mounted without replaying its log."""
    return ("norecovery",) if kind == "xfs" else ("noload",)


def place(mounted: int, target: Path) -> None:
    """Attach a detached mount to `target`, and give its descriptor back."""
    try:
        filesystem.place(mounted, target)
    finally:
        os.close(mounted)


def _mounted(image: Path, device: Path, kind: str, words: tuple[str, ...] = ()) -> int:
    """Mount; a file system that the kernel finds damaged is repaired and mounted again."""
    try:
        return filesystem.mount_detached(device, kind, options=words)
    except MountError as error:
        if error.details not in _DAMAGED or (words and error.details == "EINVAL"):
            raise  # an option that the file system does not know
        log.warning("%s: %s: repairing", image, error)
        if not filesystem.check(device, kind):
            raise StorageError(
                f"The file system in {image} is damaged and needs a decision",
                hint=f"Look at it with: ploop check {image.parent / descriptor.NAME}",
            ) from error
        return filesystem.mount_detached(device, kind, options=words)


def recover(image: Path) -> None:
    """Make an image whole that was not closed cleanly: its format, then its file system.

    xfs replays its log at the next mount, which is all it needs; ext4 is checked as at boot.
    """
    log.warning("%s was not closed cleanly: checking it", image)
    report = identity.check(image)
    if report.errors:
        raise StorageError(f"{image} is damaged", details="\n".join(report.errors))
    identity.check(image, repair=True)  # cuts what a killed grow left; clears the mark
    identity.set_in_use(image)
    with attached(image) as (loop, kind):
        if kind == "ext4" and not filesystem.check(loop.device, kind):
            raise StorageError(
                f"The file system in {image} is damaged and needs a decision",
                hint=f"Look at it with: e2fsck, on a device of {image}",
            )
        if kind == "xfs":
            os.close(_mounted(image, loop.device, kind))
    wait_detached(image)
    identity.clear_in_use(image)


def umount(image: Path, target: Path) -> None:
    """Unmount, wait until the device is gone, and note that the image is closed; raises Busy."""
    if not mount.is_mount_point(target):
        return
    mount.umount(target)
    try:
        wait_detached(image)
    except Busy as error:
        raise Busy(
            f"{target} is unmounted, but its disk is still held",
            details=error.details,
            hint="A program that was started with a copy of the mounts may hold it: end it.",
        ) from error
    if identity.in_use(image):
        identity.clear_in_use(image)


def copy(source: Path, target: Path, progress: Progress, like: filecopy.Like | None = None) -> None:
    """Make the new file `target` a copy of an image, sharing blocks where the pool can.

    On another file system with the copy of one `like` it.  Whole or not there; its holes stay.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    try:
        _copy(source, temporary, progress, like)
        _flush(temporary)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    file.fsync_directory(target.parent)


def _copy(source: Path, target: Path, progress: Progress, like: filecopy.Like | None) -> None:
    if file.reflink(source, target):
        return
    if like is None or filecopy.copy_like(source, target, like, progress) is None:
        file.copy_sparse(source, target, progress)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def still(found: Disk) -> Iterator[None]:
    """Keep a mounted disk from being written to for the block."""
    places = found.mounted()
    if not places:
        found.check_idle()
        yield
        return
    with directory(places[0].target) as mounted, filesystem.frozen(mounted, SNAPSHOT_TIMEOUT):
        yield


@contextlib.contextmanager
def opened(found: Disk) -> Iterator[int]:
    """Yield the root of the disk's file system; not mounted: it is, nowhere in the tree."""
    places = found.mounted()
    if places:
        with directory(places[0].target) as mounted:
            yield mounted
        return
    found.check_idle()
    image = found.top()
    if identity.in_use(image):
        recover(image)
    with attached(image) as (loop, kind):
        mounted = filesystem.mount_detached(loop.device, kind)
        try:
            yield mounted
        finally:
            os.close(mounted)
    wait_detached(image)


@contextlib.contextmanager
def directory(path: str) -> Iterator[int]:
    """Open a directory for the block."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
