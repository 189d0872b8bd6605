"""A disk that its file system itself writes down as streams (btrfs send), over a channel.

    DATA  length(4)   then so many bytes of the round's stream
    ROUND number(4)   the stream is complete
    END               all rounds were sent

What a stream says is the business of the storage drivers on both sides (`send_streams`,
`receive_streams`); a later one holds what has changed since the one before.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator
from typing import Final

from pyvz.errors import ProtocolError, Timeout
from pyvz.migration.wire import CHUNK, Channel, Reader
from pyvz.model.task import Progress

DATA, ROUND, END = 1, 2, 3
STALL_TIMEOUT: Final = 600.0
_TICK: Final = 0.5
_UNITS: Final = struct.Struct("!BI")


class Sender:
    """Sends streams; `rounds` counts them, `last` the bytes of the last one."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.rounds = 0
        self.last = 0

    def send(self, source: int, progress: Progress) -> None:
        """Send what the pipe `source` says until its end; raises Cancelled, Timeout."""
        self.last = 0
        while chunk := _read(source, progress.check):
            self._channel.write(_UNITS.pack(DATA, len(chunk)), poll=progress.check)
            self._channel.write(chunk, poll=progress.check)
            self.last += len(chunk)
            progress.advance(self.last)

    def complete(self) -> None:
        """Say that the stream was whole."""
        self._channel.write(_UNITS.pack(ROUND, self.rounds))
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
        while (kind := self._next()) != END:
            self._kind = kind
            yield number
            number += 1

    def feed(self, sink: int) -> None:
        """Write one stream to the pipe `sink`; raises ProtocolError, BrokenPipeError, Timeout."""
        os.set_blocking(sink, False)
        kind = self._kind
        while kind == DATA:
            (length,) = struct.unpack("!I", self._reader.exactly(4))
            if length > CHUNK:
                raise ProtocolError("The other node sent too much at once")
            _write(sink, self._reader.exactly(length))
            kind = self._next()
        if kind != ROUND:
            raise ProtocolError("The other node sent a stream without an end")
        self._reader.exactly(4)

    def _next(self) -> int:
        kind = self._reader.exactly(1)[0]
        if kind not in {DATA, ROUND, END}:
            raise ProtocolError(f"The other node sent a stream with a record of kind {kind}")
        return kind


def _read(source: int, check: Callable[[], None]) -> bytes:
    for _ in range(int(STALL_TIMEOUT / _TICK)):
        check()
        if _ready(source, select.POLLIN, _TICK):
            return os.read(source, CHUNK)
    raise Timeout(f"The disk was not written down within {STALL_TIMEOUT:g} s")


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        if not _ready(sink, select.POLLOUT, STALL_TIMEOUT):
            raise Timeout("The disk takes no more data")
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            continue


def _ready(fd: int, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(seconds * 1000))
