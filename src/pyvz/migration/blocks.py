"""A disk that is one image, over a channel: changed blocks, round by round.

    BLOCK offset(8) length(4)   then the bytes
    ZEROS offset(8) length(8)   reads as zeros from now on
    ROUND number(4)             all of a round was sent; the reader answers nothing
    END   length(8)             all rounds were sent; how long the disk is

What is read is a copy of one moment (storage: copy_image), never an image that is being written.
The first round sends what is not a hole; a later one only what differs from the copy before, told
by the file system where blocks are shared (linux/extents.py), else by comparing.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from pyvz.errors import ProtocolError, Unsupported
from pyvz.linux import extents
from pyvz.linux.extents import Range
from pyvz.migration.wire import Channel, Reader
from pyvz.model.task import Progress

BLOCK, ZEROS, ROUND, END = 1, 2, 3, 4
PIECE: Final = 1 << 20
_BLOCK: Final = struct.Struct("!BQI")
_ZEROS: Final = struct.Struct("!BQQ")
_ROUND: Final = struct.Struct("!BI")
_END: Final = struct.Struct("!BQ")
_NOTHING: Final = bytes(PIECE)


class Image(NamedTuple):
    """A copy of a disk, open: where the disk begins in the file, and how long it is."""

    fd: int
    offset: int
    size: int


class Sender:
    """Sends one disk; `rounds` counts them, `total` the bytes of all."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._poll: Callable[[], None] | None = None
        self.rounds = 0
        self.total = 0
        self.last = 0  # bytes of the last round

    def send(self, image: Image, before: Image | None, progress: Progress) -> None:
        """Send a round: all of IMAGE, or what is not as in the copy BEFORE."""
        ranges = list(_all(image) if before is None else _since(before, image))
        self.send_ranges(image, ranges, progress, fresh=before is None)

    def send_ranges(
        self, image: Image, ranges: list[Range], progress: Progress, *, fresh: bool
    ) -> None:
        """Send a round of these parts of IMAGE.  fresh: elsewhere it is zeros over there."""
        self._poll = progress.check
        amount = sum(each.length for each in ranges)
        done = 0
        for each in ranges:
            for start in range(each.start, each.end, PIECE):
                length = min(PIECE, each.end - start)
                self._piece(image, start, length, fresh=fresh)
                done += length
                progress.advance(done, amount)
        self._channel.write(_ROUND.pack(ROUND, self.rounds))
        self.rounds += 1
        self.total += done
        self.last = done

    def _piece(self, image: Image, start: int, length: int, *, fresh: bool) -> None:
        data = os.pread(image.fd, length, image.offset + start)
        if len(data) != length:
            raise ProtocolError("The copy of a disk is shorter than it says")
        if data == _NOTHING[:length]:
            if not fresh:
                self._write(_ZEROS.pack(ZEROS, start, length))
            return
        self._write(_BLOCK.pack(BLOCK, start, length))
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._channel.write(data, poll=self._poll)

    def finish(self, size: int) -> None:
        """Say that all was sent."""
        self._write(_END.pack(END, size))
        self._channel.end()


def receive(channel: Channel, fd: int, offset: int, size: int, timeout: float) -> Iterator[int]:
    """Write what a Sender sends to the file FD, whose disk of SIZE bytes begins at OFFSET.

    Yields the number of each round when it is complete.  Raises ProtocolError, OSError (ENOSPC).
    """
    reader = Reader(channel, timeout)
    while True:
        kind = reader.exactly(1)[0]
        if kind == BLOCK:
            start, length = struct.unpack("!QI", reader.exactly(12))
            _inside(start, length, size, PIECE)
            os.pwrite(fd, reader.exactly(length), offset + start)
        elif kind == ZEROS:
            start, length = struct.unpack("!QQ", reader.exactly(16))
            _inside(start, length, size, PIECE)
            os.pwrite(fd, _NOTHING[:length], offset + start)
        elif kind == ROUND:
            yield struct.unpack("!I", reader.exactly(4))[0]
        elif kind == END:
            if struct.unpack("!Q", reader.exactly(8))[0] != size:
                raise ProtocolError("The other node sent a disk of another size")
            return
        else:
            raise ProtocolError(f"The other node sent a disk with a record of kind {kind}")


def _inside(start: int, length: int, size: int, limit: int) -> None:
    if length > limit or start + length > size:
        raise ProtocolError("The other node sent a block outside of the disk")


def everything(image: Image) -> list[Range]:
    """Return the parts of the disk that are no holes."""
    return list(_all(image))


def _all(image: Image) -> Iterator[Range]:
    end = image.offset + image.size
    for found in extents.data_ranges(image.fd, image.offset, end):
        yield Range(found.start - image.offset, found.length)


def _since(before: Image, image: Image) -> Iterator[Range]:
    if before.offset != image.offset:
        yield from _compared(before, image)
        return
    try:
        yield from _within(extents.differences(before.fd, image.fd), image)
    except Unsupported:
        yield from _compared(before, image)


def _within(found: Iterable[Range], image: Image) -> Iterator[Range]:
    """Clip ranges of the file to the disk in it."""
    for each in found:
        start = max(each.start - image.offset, 0)
        end = min(each.end - image.offset, image.size)
        if start < end:
            yield Range(start, end - start)


def _compared(before: Image, image: Image) -> Iterator[Range]:
    for start in range(0, image.size, PIECE):
        length = min(PIECE, image.size - start)
        old = os.pread(before.fd, length, before.offset + start)
        if old != os.pread(image.fd, length, image.offset + start):
            yield Range(start, length)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], offset: int, size: int) -> Iterator[Image]:
    """Open a copy for the block."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield Image(fd, offset, size)
    finally:
        os.close(fd)
