"""Where the data of a file is, and in which ranges two clones of one file differ.

`data_ranges` asks by SEEK_DATA (lseek(2)); `mapped` asks for the physical extents (FIEMAP,
Documentation/filesystems/fiemap.rst).  Two reflink clones share the blocks that neither has
written since: while both exist, the file system can give such a block to nobody else and writes
always go elsewhere (copy on write), so "same logical and same physical place" means "same
content".  The reverse is not true, a defragmentation moves blocks: then more is told as changed
than is, never less.

All offsets and lengths are in bytes.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pyvz.errors import Unsupported

_FS_IOC_FIEMAP: Final = 0xC020660B
_FLAG_SYNC: Final = 0x1  # write out delayed allocations first
_HEADER: Final = struct.Struct("=QQIIII")  # start length flags mapped count reserved
_EXTENT: Final = struct.Struct("=QQQ2QI3I")  # logical physical length, reserved, flags, reserved
_BATCH: Final = 1024
_LAST: Final = 0x1
_UNWRITTEN: Final = 0x800  # allocated, reads as zeros
# The physical place says nothing about the content: UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED,
# NOT_ALIGNED, DATA_INLINE, DATA_TAIL, MERGED (linux/fiemap.h).
_VAGUE: Final = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000


class Range(NamedTuple):
    """A part of a file."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


class Extent(NamedTuple):
    """A part of a file and where it lies on its file system; None: somewhere, nobody knows."""

    start: int
    length: int
    physical: int | None

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


def data_ranges(fd: int, start: int = 0, end: int | None = None) -> Iterator[Range]:
    """Yield the ranges of FD between START and END that are not holes, in order."""
    stop = os.fstat(fd).st_size if end is None else end
    position = start
    while position < stop:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        if data >= stop:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), stop)
        yield Range(data, hole - data)
        position = hole


def mapped(fd: int) -> Iterator[Extent]:
    """Yield the extents of FD in order, without what reads as zeros.

    Raises Unsupported where the file system has no FIEMAP.
    """
    start = 0
    while True:
        batch = _fiemap(fd, start)
        for extent, flags in batch:
            if not flags & _UNWRITTEN:
                yield extent._replace(physical=None) if flags & _VAGUE else extent
        if not batch or batch[-1][1] & _LAST:
            return
        start = batch[-1][0].end


def _fiemap(fd: int, start: int) -> list[tuple[Extent, int]]:
    """Return up to _BATCH extents from START on, with their flags."""
    request = _HEADER.pack(start, (1 << 64) - 1 - start, _FLAG_SYNC, 0, _BATCH, 0)
    buffer = array.array("B", request.ljust(_HEADER.size + _BATCH * _EXTENT.size, b"\0"))
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer, True)  # noqa: FBT003  (mutate)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
            raise Unsupported("The file system does not tell where a file's blocks are") from error
        raise
    count = _HEADER.unpack_from(buffer)[3]
    found = []
    for index in range(count):
        fields = _EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size)
        found.append((Extent(fields[0], fields[2], fields[1]), fields[5]))
    return found


def changed(old: Iterable[Extent], new: Iterable[Extent]) -> list[Range]:
    """Return the ranges in which two clones may differ, in order, joined where they touch.

    OLD and NEW are the extents of each in order, as `mapped` yields them.  A range that only one
    of them has counts as changed: it was written, or discarded.
    """
    found: list[Range] = []
    for start, end, first, second in _side_by_side(iter(old), iter(new)):
        if first is not None and first == second:
            continue
        if found and found[-1].end == start:
            found[-1] = Range(found[-1].start, end - found[-1].start)
        else:
            found.append(Range(start, end - start))
    return found


_Place = tuple[int, int] | int | None  # physical; None: nothing is there


def _side_by_side(
    old: Iterator[Extent], new: Iterator[Extent]
) -> Iterator[tuple[int, int, _Place, _Place]]:
    """Yield (start, end, place in OLD, place in NEW) of pieces in which neither extent ends."""
    first, second = next(old, None), next(new, None)
    position = 0
    while first is not None or second is not None:
        extents = [extent for extent in (first, second) if extent is not None]
        position = max(position, min(extent.start for extent in extents))
        edges = (edge for extent in extents for edge in (extent.start, extent.end))
        end = min(edge for edge in edges if edge > position)
        yield position, end, _place(first, position, 0), _place(second, position, 1)
        position = end
        if first is not None and first.end <= position:
            first = next(old, None)
        if second is not None and second.end <= position:
            second = next(new, None)


def _place(extent: Extent | None, position: int, side: int) -> _Place:
    """Return where POSITION lies; an unknown place is equal to nothing on the other side."""
    if extent is None or position < extent.start:
        return None
    if extent.physical is None:
        return (side, position)
    return extent.physical + position - extent.start


def differences(old: int, new: int) -> list[Range]:
    """Return the ranges in which the clones behind two descriptors may differ.

    Both are on one file system, neither is written meanwhile.  Raises Unsupported.
    """
    if os.fstat(old).st_dev != os.fstat(new).st_dev:
        raise Unsupported("Two files on different file systems share no blocks")
    return changed(mapped(old), mapped(new))
