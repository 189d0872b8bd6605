"""A ploop disk as the disk of a virtual machine: whatever its guest keeps in it, nobody here looks.

    <path>.hdd/DiskDescriptor.xml, root.hds, root.hds.{guid}       as storage/ploopdisk.py has them

In the identity form the disk is the image from one byte on, which QEMU opens as it is; discarded
blocks become holes.  QEMU's own locks on the image (linux/imagelock.py) keep everybody else away
while the machine runs.  Snapshots are whole images that share blocks.  Partitions and file systems
are the guest's: neither growing nor going back to a snapshot touches them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pyvz.errors import NotFound, StorageError
from pyvz.image import disk, identity
from pyvz.image.file import opened
from pyvz.linux import file, filecopy
from pyvz.model.task import NoProgress, Progress
from pyvz.storage import ploopcopy, ploopdisk
from pyvz.storage.ploopdisk import Disk


class Place(NamedTuple):
    """The image that takes the writes, and where in it the disk is, in bytes."""

    image: Path
    offset: int
    size: int


def is_one(path: Path) -> bool:
    """Whether a ploop disk is there: a directory with a descriptor, and no link."""
    return Disk(path).exists


def find(path: Path) -> Place:
    """Return where the disk is; raises FileMissing, StorageError (thin, encrypted, damaged)."""
    found = Disk(path)
    if found.descriptor().key:
        raise StorageError(f"{path} is encrypted: no virtual machine can have it")
    image = found.top()
    with opened(image) as fd:
        header = identity.require(fd, image)
    end = header.data + header.size
    if image.stat().st_size != end:
        raise StorageError(
            f"{image} has a tail that belongs to nothing",
            hint=f"Cut it off: ploop check -f {path / disk.NAME}",
        )
    return Place(image, header.data, header.size)


def image_of(path: Path) -> Path:
    """Return the image that takes the writes, without a look into it; raises StorageError."""
    return Disk(path).top()


@contextmanager
def held(path: Path) -> Iterator[Place]:
    """Yield where the disk is, which no device shows, and let nobody change that for the block.

    Raises Locked, AlreadyMounted, Busy, StorageError.
    """
    found = Disk(path)
    with found.locked():
        found.check_unmounted()
        yield find(path)


@contextmanager
def still(path: Path) -> Iterator[Place]:
    """Yield where the disk is, which nobody has, and let nobody have it for the block.

    Raises as `held` does, and Busy for one that a QEMU has.
    """
    with held(path) as place:
        Disk(path).check_idle()
        yield place


def create(path: Path, size: int) -> Place:
    """Make an empty disk of exactly SIZE bytes, which has room to grow; whole or not there.

    Where snapshots came before it (`copy_snapshots`), only the image that takes the writes is made.
    Raises StorageError, NoSpace.
    """
    found = Disk(path)
    fresh = not found.exists
    cluster = identity.cluster_of(size) if fresh else found.descriptor().blocksize
    if size % cluster:
        raise StorageError(f"{path} cannot have {size} bytes: its blocks have {cluster}")
    if not fresh:
        identity.create(found.top(), size, cluster=cluster)
        return find(path)
    with _whole(path):
        identity.create(path / disk.BASE_FILE, size, cluster=cluster)
        found.save(disk.Descriptor(disk_size=size, blocksize=cluster))
    return find(path)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Have the new directory PATH filled by the block, or not be there."""
    path.mkdir(mode=0o700)
    try:
        yield
    except BaseException:
        remove(path)
        raise


def snapshots(path: Path) -> tuple[str, ...]:
    """Return the files of all but the image that takes the writes, and the descriptor; none
    without snapshots.

    They do not change while a machine has the disk.
    """
    value = Disk(path).descriptor()
    files = tuple(image.file for image in value.images if image.guid != value.top)
    return (*files, disk.NAME) if files else ()


def copy_snapshots(path: Path, target: Path, progress: Progress) -> None:
    """Make TARGET what the disk is but for the image that takes the writes, which `create` makes.

    Nothing happens without snapshots.  Whole or not there.  The disk may be in use.
    """
    if not snapshots(path):
        return
    value = Disk(path).descriptor()
    like: filecopy.Like | None = None
    with _whole(target):
        for image in value.images:
            if image.guid != value.top:
                both = filecopy.Like(path / image.file, target / image.file)
                ploopdisk.copy(*both, progress, like)
                like = both
        Disk(target).save(value)


def grow(path: Path, size: int) -> int:
    """Make the disk SIZE bytes large, and return the size (whole MiB); also while QEMU has it."""
    found = Disk(path)
    with found.locked():
        found.check_unmounted()
        size = identity.grow(found.top(), size)
        found.save(replace(found.descriptor(), disk_size=size))
    return size


def keep(path: Path, guid: str) -> None:
    """Make a snapshot of a disk to which nobody writes now: QEMU stands still, or has it not."""
    found = Disk(path)
    with found.locked():
        found.check_unmounted()
        found.keep(guid)


def has(path: Path, guid: str) -> bool:
    """Whether the disk has a snapshot; raises FileMissing, StorageError."""
    try:
        return Disk(path).image(guid).exists()
    except NotFound:
        return False


def switch(path: Path, guid: str) -> None:
    """Make the disk what it was at a snapshot, its size as well; may be repeated."""
    found = Disk(path)
    with found.locked():
        found.check_idle()
        found.sweep()
        before, old = found.top(), found.descriptor()
        fresh = path / f"{disk.BASE_FILE}.{{{uuid4()}}}"  # as the original names new tops
        new = old.switched(guid, fresh.name)
        ploopdisk.copy(found.image(guid), fresh, NoProgress())
        try:
            found.save(replace(new, disk_size=identity.size(fresh)))
        except BaseException:
            fresh.unlink()
            raise
        before.unlink()


def forget(path: Path, guid: str) -> None:
    """Delete a snapshot; one that is not there is fine."""
    found = Disk(path)
    with found.locked(), suppress(NotFound):
        image = found.image(guid)
        found.save(found.descriptor().without_snapshot(guid))
        image.unlink()


def copy(path: Path, target: Path) -> None:
    """Make TARGET a disk with the same content and no snapshots, sharing blocks where it can.

    Whole or not there.  Nobody may have the disk open.
    """
    with still(path) as place, _whole(target):
        ploopdisk.copy(place.image, target / disk.BASE_FILE, NoProgress())
        block = Disk(path).descriptor().blocksize
        Disk(target).save(disk.Descriptor(disk_size=place.size, blocksize=block))


def copy_whole(path: Path, target: Path, progress: Progress) -> None:
    """Make TARGET the same disk with its snapshots, which share there what they share here.

    Whole or not there.  Nobody may have the disk open.
    """
    with still(path), _whole(target):
        ploopcopy.copy_disk(Disk(path), target, progress)


def remove(path: Path) -> None:
    """Take the disk away with its snapshots; idempotent."""
    gone = path.with_name(f"{path.name}.gone")
    with suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    file.fsync_directory(path.parent)
