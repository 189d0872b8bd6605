"""What is in a volume: taken from a client or sent to it as a stream, allocated, wiped.

The file is opened when the stream begins, and never through a link; reading and writing happens in
threads of the daemon, one piece at a time, so that a slow disk holds up its client through the
socket and nobody else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final

from pyvz.errors import StorageError
from pyvz.gateway import failure, frame
from pyvz.gateway.failure import Failure
from pyvz.gateway.office import Office
from pyvz.gateway.streams import Flow, Hole
from pyvz.linux.extents import data_ranges
from pyvz.model.task import Progress
from pyvz.vm import image

SPARSE: Final = 1  # flag: with holes
CHUNK: Final = 4 * frame.DATA_LIMIT  # bytes read at a time
_MOST: Final = 1 << 53
_ZEROS: Final = bytes(1 << 20)


class Upload(Flow):
    """Data of the client's, written from an offset on; length 0: as much as it sends."""

    def __init__(self, office: Office, path: Path, offset: int, length: int) -> None:
        self._office = office
        self._path = path
        self._at = offset
        self._end = offset + length if length else _MOST
        if self._at >= _MOST or self._end > _MOST:
            raise Failure(failure.INVALID_ARGUMENT, "No volume is as large as that")
        self._fd = image.open_image(path, writable=True)

    async def feed(self, data: bytes) -> None:
        """Write DATA; raises Failure beyond the length, StorageError when it cannot be written."""
        await self._step(len(data), partial(_write, self._fd, data, self._at))

    async def skip(self, length: int) -> None:
        """Leave a hole: what is there becomes zeros, what is not stays unwritten."""
        await self._step(length, partial(_clear, self._fd, self._at, self._at + length))

    async def _step(self, length: int, work: Callable[[], None]) -> None:
        if self._at + length > self._end:
            raise Failure(failure.INVALID_ARGUMENT, "More data than the length that was given")
        try:
            await self._office.query(work)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from error
        self._at += length

    async def close(self) -> None:
        """Close the file; what was written stays."""
        os.close(self._fd)


class Download(Flow):
    """The bytes of an image from an offset on; length 0: to its end."""

    def __init__(
        self, office: Office, path: Path, offset: int, length: int, *, sparse: bool
    ) -> None:
        self._office = office
        self._path = path
        self._sparse = sparse
        self._fd = image.open_image(path, writable=False)
        size = os.fstat(self._fd).st_size
        self._at = min(offset, size)
        self._end = min(offset + length, size) if length else size

    async def data(self) -> AsyncIterator[bytes | Hole]:
        """Yield what is there; with holes where the client takes them."""
        try:
            while self._at < self._end:
                piece = await self._office.query(self._piece)
                self._at += piece.length if isinstance(piece, Hole) else len(piece)
                yield piece
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}") from error

    def _piece(self) -> bytes | Hole:
        end = self._end
        if self._sparse:
            found = next(iter(data_ranges(self._fd, self._at, end)), None)
            begin = end if found is None else found.start
            if begin > self._at:
                return Hole(begin - self._at)
            end = end if found is None else found.end
        data = os.pread(self._fd, min(CHUNK, end - self._at), self._at)
        if not data:
            raise StorageError(f"{self._path} has become shorter")
        return data

    async def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def allocate(path: Path, size: int) -> None:
    """Give a raw image room for SIZE bytes; raises StorageError."""
    fd = image.open_image(path, writable=True)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        raise StorageError(f"There is no room for {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def wipe(path: Path, progress: Progress) -> None:
    """Write zeros over everything that an image has; can be called off.  Raises StorageError."""
    fd = image.open_image(path, writable=True)
    try:
        size = os.fstat(fd).st_size
        _clear(fd, 0, size, check=progress.check)
        os.fsync(fd)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        at += written
        view = view[written:]


def _clear(fd: int, start: int, end: int, *, check: Callable[[], None] | None = None) -> None:
    """Make zeros of a part of a file: data is written over, holes stay, a short file grows."""
    for each in data_ranges(fd, start, min(end, os.fstat(fd).st_size)):
        for at in range(each.start, each.end, len(_ZEROS)):
            if check is not None:
                check()
            _write(fd, _ZEROS[: each.end - at], at)
    if os.fstat(fd).st_size < end:
        os.ftruncate(fd, end)
