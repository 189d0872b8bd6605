"""Image files: regular files and nothing else, never reached through a link.

A disk's directory can come from anywhere (a copied container, a tenant's upload), so a name in
it may be a device, a FIFO or a link to somebody else's disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import FileMissing, NoSpace, StorageError


@contextlib.contextmanager
def opened(path: str | Path, *, write: bool = False) -> Iterator[int]:
    """Open a regular file and yield its descriptor.

    Raises FileMissing; StorageError for links, devices, FIFOs, directories; NoSpace in place of
    the OSError that a full file system gives while it is open; OSError.
    """
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _named(error, path) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError(f"{path} is not a regular file")
        with no_space(path):
            yield fd
    finally:
        os.close(fd)


def _named(error: OSError, path: str | Path) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return FileMissing(f"there is no file {path}")
    if error.errno == errno.ELOOP:
        return StorageError(f"{path} is a symbolic link; images must be regular files")
    if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENODEV):
        return StorageError(f"{path} is not a regular file")
    return error


@contextlib.contextmanager
def no_space(path: str | Path) -> Iterator[None]:
    """Turn the OSError of a full file system into NoSpace that names PATH."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{path} could not be written: no space left") from error
        raise


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return SIZE bytes at OFFSET; fewer at the end of the file."""
    parts = []
    while size:
        part = os.pread(fd, min(size, 1 << 24), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of DATA at OFFSET."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
