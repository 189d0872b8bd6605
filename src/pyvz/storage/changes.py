"""What differs between two reflink copies of one disk's image file: changed blocks by FIEMAP.

Both files exist while they are compared, so a block that both have in the same place has not been
written since they parted (linux/extents.py).  What is told may be more than what differs, never
less.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pyvz.errors import Unsupported
from pyvz.linux import extents
from pyvz.linux.extents import Range
from pyvz.linux.features import reflink_at

Ranges = list[tuple[int, int]]  # (offset, length) in bytes, in order, apart from each other


def between(old: Path, new: Path, offset: int, size: int) -> Ranges:
    """Return in which parts of the disk, SIZE bytes of NEW from OFFSET on, OLD may differ.

    The disk begins at OFFSET in both.  Nobody writes to them meanwhile.  Raises Unsupported where
    the file system shares no blocks, or does not tell where they are.
    """
    if not reflink_at(new.parent):
        raise Unsupported(
            f"The file system of {new.parent} shares no blocks between copies of a disk",
            hint="Changed blocks need a pool on xfs or btrfs.",
        )
    with ExitStack() as files:
        both = []
        for path in (old, new):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            files.callback(os.close, fd)
            both.append(fd)
        return clipped(extents.differences(*both), offset, size)


def clipped(ranges: Iterable[Range], offset: int, size: int) -> Ranges:
    """Return what of the ranges of a file lies in the disk, as bytes of the disk."""
    found = []
    for each in ranges:
        start, end = max(each.start - offset, 0), min(each.end - offset, size)
        if start < end:
            found.append((start, end - start))
    return found
