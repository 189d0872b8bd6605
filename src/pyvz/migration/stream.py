"""A disk that its file system itself writes down as streams (btrfs send), over a channel.

    DATA  length(4)   then so many bytes of the round's stream
    ROUND number(4)   the stream is complete
    END               all rounds were sent

What a stream says is the business of the storage drivers on both sides (`send_streams`,
`receive_streams`); a later one holds what has changed since the one before.  Trees (tree.py) go in
the same frames.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from pyvz.errors import ProtocolError, Timeout
from pyvz.linux import run
from pyvz.migration.wire import CHUNK, Channel, Reader
from pyvz.model.task import Progress

DATA, ROUND, END = 1, 2, 3
STALL_TIMEOUT: Final = 600.0
UNITS: Final = struct.Struct("!BI")


class Sender:
    """Sends streams; `rounds` counts them, `last` the bytes of the last one."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.rounds = 0
        self.last = 0

    def send(self, source: int, progress: Progress) -> None:
        """Send what the pipe `source` says until its end; raises Cancelled, Timeout."""
        self.last = 0
        said = f"The disk was not written down within {STALL_TIMEOUT:g} s"
        while chunk := read(source, progress.check, STALL_TIMEOUT, said):
            self._channel.write(UNITS.pack(DATA, len(chunk)), poll=progress.check)
            self._channel.write(chunk, poll=progress.check)
            self.last += len(chunk)
            progress.advance(self.last)

    def complete(self) -> None:
        """Say that the stream was whole."""
        self._channel.write(UNITS.pack(ROUND, self.rounds))
        self.rounds += 1

    def finish(self) -> None:
        """Say that all was sent."""
        self._channel.write(bytes([END]))
        self._channel.end()


class Receiver:
    """Reads what a Sender sends."""

    def __init__(self, channel: Channel, timeout: float) -> None:
        self._reader = Reader(channel, timeout)
        self._kind = 0

    def rounds(self) -> Iterator[int]:
        """Yield the number of each stream that comes: `feed` then has to be called for it."""
        number = 0
        while (kind := self._reader.exactly(1)[0]) != END:
            self._kind = kind
            yield number
            number += 1

    def feed(self, sink: int) -> None:
        """Write one stream to the pipe `sink`; raises ProtocolError, BrokenPipeError, Timeout."""

        def write_one(data: bytes) -> None:
            write(sink, data, STALL_TIMEOUT, "The disk takes no more data")

        os.set_blocking(sink, False)
        forward(self._reader, self._kind, write_one, "stream")


def forward(reader: Reader, kind: int, write_one: Callable[[bytes], None], what: str) -> int:
    """Write on one round, of which KIND was read; returns its number.

    what: a word for it.  Raises ProtocolError, and what `write_one` raises.
    """
    while kind == DATA:
        (length,) = struct.unpack("!I", reader.exactly(4))
        if length > CHUNK:
            raise ProtocolError("The other node sent too much at once")
        write_one(reader.exactly(length))
        kind = reader.exactly(1)[0]
    if kind != ROUND:
        raise ProtocolError(f"The other node sent a {what} with a record of kind {kind}")
    return int(struct.unpack("!I", reader.exactly(4))[0])


def read(source: int, check: Callable[[], None], patience: float, stalled: str) -> bytes:
    """Return what a pipe says next, nothing at its end; raises Timeout (stalled), what CHECK does.

    patience: seconds.
    """
    poller = select.poll()
    poller.register(source, select.POLLIN)
    for _ in range(int(patience / run.TICK)):
        check()
        if poller.poll(run.TICK * 1000):
            return os.read(source, CHUNK)
    raise Timeout(stalled)


def write(sink: int, data: bytes, patience: float, stalled: str) -> None:
    """Write all of DATA to a pipe that does not block; raises Timeout (stalled), BrokenPipeError.

    patience: seconds without room.
    """
    poller = select.poll()
    poller.register(sink, select.POLLOUT)
    view = memoryview(data)
    while view:
        if not poller.poll(patience * 1000):
            raise Timeout(stalled)
        with suppress(BlockingIOError):
            view = view[os.write(sink, view) :]
