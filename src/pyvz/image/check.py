"""Checking and repairing one image of any form, as `ploop check` does.

For an image that nobody has open: a check of one in use sees a moving target.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

from pyvz.errors import StorageError
from pyvz.image import identity
from pyvz.image.delta import faults, read_table
from pyvz.image.file import opened, write_at
from pyvz.image.header import CLOSED, IN_USE_AT, SECTOR, Header
from pyvz.image.report import Report


def check(path: str | Path, *, repair: bool = False) -> Report:
    """Check an image with a header; with `repair` put right what costs no data.

    Identity form: see identity.check.  Thin: leaked space at the end is cut, the mark of an unclean
    end is taken away when nothing else is wrong.  Raises FileMissing; StorageError only when the
    file is no ploop image at all.
    """
    if identity.is_identity(path):
        return identity.check(path, repair=repair)
    with opened(path, write=repair) as fd:
        header = identity.read_header(fd)
        size = os.fstat(fd).st_size
        try:
            table = read_table(fd, header, path)
        except StorageError as error:
            return Report(errors=(error.message,), in_use=header.is_in_use)
        errors = faults(header, table, size)
        end = _end(header, table)
        leaks = [f"{size - end} bytes at the end of the file belong to nothing"] * (size > end)
        if errors or not repair:
            return Report(tuple(errors), tuple(leaks), in_use=header.is_in_use)
        repaired = leaks
        if leaks:
            os.ftruncate(fd, end)
            os.fsync(fd)
        if header.is_in_use:
            write_at(fd, CLOSED.to_bytes(4, "little"), IN_USE_AT)
            os.fsync(fd)
            repaired = [*repaired, "it was not closed cleanly"]
        return Report(repaired=tuple(repaired), in_use=header.is_in_use)


def check_raw(path: str | Path) -> Report:
    """Check a raw image: all that can be said is whether its size is one of a disk."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
    if size == 0 or size % SECTOR:
        return Report(errors=(f"{size} bytes are not whole sectors",))
    return Report()


def _end(header: Header, table: array[int]) -> int:
    """Return where the file ends when its last cluster is the last that a table names."""
    last = max(table, default=0)
    return max(header.data, last * header.unit + header.cluster if last else 0)
