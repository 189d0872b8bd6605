"""Ranges of one file brought into another, and compared: what a copy by rounds is made of.

Offsets and lengths are bytes.  What is zeros in the source becomes, or stays, a hole.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import StorageError, Unsupported
from pyvz.linux import extents, file
from pyvz.linux.extents import Range
from pyvz.model.task import Progress

_PIECE: Final = 1 << 20


class Like(NamedTuple):
    """A file that has a copy: one like it can be copied by what differs."""

    source: Path
    target: Path


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


def copy_like(source: Path, target: Path, like: Like, progress: Progress) -> int | None:
    """Make the new file TARGET a copy of SOURCE that shares with the copy of a file LIKE it what
    the two share; return how many bytes were copied, None where that cannot be.

    Raises OSError (ENOSPC), StorageError (it is not equal), Cancelled: there is no TARGET then.
    """
    if not file.reflink(like.target, target):
        return None
    try:
        with (
            opened(like.source, os.O_RDONLY) as before,
            opened(source, os.O_RDONLY) as old,
            opened(target, os.O_RDWR) as new,
        ):
            ranges = extents.differences(before, old)
            os.ftruncate(new, os.fstat(old).st_size)
            copied = copy(old, new, ranges, progress)
            flush(new)
            compare(old, new, ranges, progress)
            return copied
    except Unsupported:
        target.unlink()
        return None
    except BaseException:
        target.unlink()
        raise


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file that is no link for the block; a new one is for its owner alone."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


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
