"""Ranges of one file brought into another, and compared: what a copy by rounds is made of.

Offsets and lengths are bytes.  What is zeros in the source becomes, or stays, a hole.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Final

from pyvz.errors import StorageError
from pyvz.linux import extents
from pyvz.linux.extents import Range
from pyvz.model.task import Progress

_PIECE: Final = 1 << 20


def pieces(ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield the ranges in parts of at most 1 MiB."""
    for each in ranges:
        for start in range(each.start, each.end, _PIECE):
            yield Range(start, min(_PIECE, each.end - start))


def copy(source: int, target: int, ranges: Iterable[Range], progress: Progress) -> int:
    """Copy the ranges from SOURCE to the same places of TARGET; return how many bytes they have.

    Raises OSError (ENOSPC), what PROGRESS raises.
    """
    done = 0
    for piece in pieces(ranges):
        progress.check()
        data = os.pread(source, piece.length, piece.start)
        if data.count(0) == len(data):
            _empty(target, Range(piece.start, len(data)))
        else:
            _write(target, data, piece.start)
        done += len(data)
    return done


def _write(target: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, start)
        view, start = view[written:], start + written


def _empty(target: int, where: Range) -> None:
    """Make a range read as zeros; nothing is written where nothing was."""
    if next(extents.data_ranges(target, where.start, where.end), None) is not None:
        _write(target, bytes(where.length), where.start)


def flush(target: int) -> None:
    """Have the content on the disk, and forget what is cached: the next read sees the disk."""
    os.fsync(target)
    os.posix_fadvise(target, 0, 0, os.POSIX_FADV_DONTNEED)


def compare(source: int, target: int, ranges: Iterable[Range], progress: Progress) -> None:
    """Raise StorageError when the files differ in one of the ranges."""
    for piece in pieces(ranges):
        progress.check()
        if differ(source, target, piece):
            raise StorageError(
                f"The copy is not equal: {piece.length} bytes at {piece.start} differ",
                hint="Nothing was changed: look at the disks.",
            )


def differ(source: int, target: int, where: Range) -> bool:
    """Whether the files differ in the range."""
    both = (os.pread(fd, where.length, where.start) for fd in (source, target))
    first, second = both
    return first != second


def either(source: int, target: int) -> Iterator[Range]:
    """Yield ranges that cover the data of both files (some of them twice)."""
    return itertools.chain(extents.data_ranges(source), extents.data_ranges(target))
