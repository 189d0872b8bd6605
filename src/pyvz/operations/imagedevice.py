"""The file system in an image: where it lies, who has it open, and how to get at it.

An image holds its file system on the whole disk, or in the one partition of a GPT, as OpenVZ makes
it.  A loop device is made of just that part, so whoever mounts it sees no partition table.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Busy, StorageError, Unsupported
from pyvz.image import gpt, identity
from pyvz.image.disk import RAW, Descriptor
from pyvz.image.file import opened
from pyvz.linux import filesystem, imagelock, loopdevice
from pyvz.linux.loopdevice import Loop
from pyvz.linux.mount import mounts
from pyvz.storage import ploopdisk


class Part(NamedTuple):
    """Bytes of the image file: the disk, and in it what the file system has.

    partition: None where the file system takes the whole disk.
    """

    start: int
    size: int
    partition: gpt.Partition | None

    @property
    def offset(self) -> int:
        """The byte of the file at which the file system begins."""
        return self.start + (self.partition.offset if self.partition else 0)

    @property
    def length(self) -> int:
        """The bytes that the file system can have."""
        return self.partition.size if self.partition else self.size


class Place(NamedTuple):
    """A loop device above an image, and where it is mounted in this mount namespace."""

    loop: Loop
    targets: tuple[str, ...]


def part(path: Path, d: Descriptor) -> Part:
    """Return where the file system of an image lies; Unsupported for a thin image."""
    if d.mode == RAW:
        start, size = 0, path.stat().st_size
    elif not identity.is_identity(path):
        raise Unsupported(
            f"{path} is a thin image, which this node cannot mount as it is",
            hint=f"Convert it: ploop convert -f preallocated {path.parent}/DiskDescriptor.xml",
        )
    else:
        start, size = identity.data_offset(path), identity.size(path)
    with opened(path) as fd:
        return Part(start, size, gpt.find(fd, start, size))


def raw_part(path: Path) -> ploopdisk.Part:
    """Return where in a disk without a header the file system is, and its kind."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size // loopdevice.SECTOR * loopdevice.SECTOR
        found = gpt.find(fd, 0, size) if size else None
    offset, length = (found.offset, found.size) if found else (0, size)
    return ploopdisk.Part(offset, length, filesystem.kind_at(path, offset))


def places(path: Path) -> list[Place]:
    """Return the loop devices above an image, and where they are mounted."""
    loops = loopdevice.find(path)
    found = mounts() if loops else []
    return [
        Place(
            loop,
            tuple(each.target for each in found if each.device == (loop.major, loop.minor)),
        )
        for loop in loops
    ]


def check_free(path: Path) -> None:
    """Raise Busy when the image is attached, or a virtual machine has it."""
    check_unlocked(path)
    for loop, targets in places(path):
        where = f" and mounted at {', '.join(targets)}" if targets else ""
        raise Busy(f"{path} is in use: it is attached as {loop.device}{where}")


def check_unlocked(path: Path) -> None:
    """Raise Busy when a QEMU has the image open."""
    if imagelock.held(path):
        raise Busy(f"{path} is in use: a virtual machine has it")


@contextlib.contextmanager
def device(path: Path, found: Part, *, readonly: bool = False) -> Iterator[Loop]:
    """Attach the file system of a free image for the length of the block."""
    check_free(path)
    with loopdevice.attached(path, found.offset, found.length, readonly=readonly) as loop:
        yield loop
    before = loopdevice.backing_of(loop.minor)
    if before is not None:
        loopdevice.wait_gone(loop.minor, before)


def kind(path: Path, found: Part) -> str:
    """Return the type of the file system in an image; raises StorageError when there is none."""
    name = filesystem.kind_at(path, found.offset)
    if name is None:
        raise StorageError(f"{path} holds no file system that is known here")
    return name
