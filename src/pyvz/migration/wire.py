"""The wire between two nodes: one byte stream, on it messages and channels of data.

    greeting   "PYVZ-MIGRATION 1\n", sent by both sides; what comes before it is not ours
    frame      kind(1) flags(1) channel(2) length(4), big-endian, then the payload
      MESSAGE  one JSON object (messages.py), on channel 0
      DATA     bytes of a channel, at most 256 KiB; flag 1: one zstd frame
      END      no more data on the channel
      CREDIT   4 bytes: so many bytes of the channel have been taken out by the reader
      PING     nothing: somebody is there
      REFUSED  what is sent on the channel is not taken any more; a message tells why

Each direction of a channel may have WINDOW bytes under way (before compression), so that a slow
disk never holds up messages or other channels.  A thread reads, another one pings; whoever hears
nothing for `silence` seconds takes the connection for lost.  All waiting has a deadline.

Nothing that the other side sends is believed: lengths, frames and messages are checked, and a
violation ends the connection.  Who is at the other end is ssh's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zstandard

from pyvz.errors import ConnectionBroken, MigrationError, ProtocolError, Timeout
from pyvz.migration import messages
from pyvz.migration.messages import Message
from pyvz.migration.pace import Pace

GREETING: Final = b"PYVZ-MIGRATION 1\n"
MAX_NOISE: Final = 64 << 10  # bytes of a login script's chatter before the greeting
MAX_MESSAGE: Final = 4 << 20
CHUNK: Final = 256 << 10
WINDOW: Final = 8 << 20
SILENCE: Final = 30.0
_MAX_CHANNELS: Final = 1024
_LOOK: Final = 0.5  # seconds between two looks at a connection that stands still
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h
_BUFFER: Final = 4 << 20
_QUEUED: Final = 64  # messages that may wait to be taken
_HEADER: Final = struct.Struct("!BBHI")
_CREDIT: Final = struct.Struct("!I")
MESSAGE, DATA, END, CREDIT, PING, REFUSED = 1, 2, 3, 4, 5, 6
_COMPRESSED: Final = 1
_LEVEL: Final = 1
_PAYS: Final = 0.9  # a frame has to become so much smaller
_PAUSE: Final = 32  # frames sent as they are after one that did not

Buffer = bytes | bytearray | memoryview


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a pair of connected sockets that hold much: who sends seldom waits for his turn."""
    made = socket.socketpair()
    for each in made:
        with contextlib.suppress(OSError):  # without CAP_NET_ADMIN: what everybody gets
            each.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
    return made


class Refused(MigrationError):
    """The other side does not take what is sent on a channel; the next call tells why."""


class Wire:
    """One connection.  Use as a context manager; leaving it closes everything.

    reading, writing: descriptors of the stream, which become ours.
    last_words: what the transport (ssh) has said, for the message when it breaks.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        *,
        silence: float = SILENCE,
        compress: bool = True,
        last_words: Callable[[], str] = str,
    ) -> None:
        self._reading, self._writing = reading, writing
        self.silence = silence
        self._compress = compress
        self._last_words = last_words
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._messages: deque[Message] = deque()
        self._channels: dict[int, Channel] = {}
        self._broken: MigrationError | None = None
        self._closed = False
        self.pace = Pace()
        self.sent = 0  # bytes on the wire
        self.received = 0
        for fd in {reading, writing}:
            os.set_blocking(fd, False)
        self._threads = [
            threading.Thread(target=each, name=f"wire-{each.__name__}", daemon=True)
            for each in (self._read, self._ping)
        ]

    def __enter__(self) -> Wire:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Greet, and begin to listen.  Raises ConnectionBroken, ProtocolError."""
        self._write(GREETING)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the connection; whoever waits for it is told.  Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._fail(ConnectionBroken("The connection was closed"))
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(self.silence)
        for fd in {self._reading, self._writing}:
            with contextlib.suppress(OSError):
                os.close(fd)

    # Messages

    def send(self, message: Message) -> None:
        """Send a message."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_MESSAGE:
            raise ProtocolError(f"A message of {len(data)} bytes is too long to be sent")
        self._frame(MESSAGE, 0, data)

    def receive(self, timeout: float, *, poll: Callable[[], None] | None = None) -> Message:
        """Return the next message; raises Timeout, ConnectionBroken, and what `poll` raises."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._messages:
                self._wait(deadline, "an answer", poll)
            message = self._messages.popleft()
            self._changed.notify_all()
            return message

    def check(self) -> None:
        """Raise when the connection is broken."""
        if self._broken is not None:
            raise self._broken

    # Channels

    def channel(self, number: int) -> Channel:
        """Return a channel; both sides know its number by a message."""
        if not 0 < number < _MAX_CHANNELS:
            raise ProtocolError(f"{number} is not the number of a channel")
        with self._changed:
            return self._channels.setdefault(number, Channel(self, number))

    # Threads

    def _read(self) -> None:
        try:
            self._greeted()
            while True:
                kind, flags, number, length = _HEADER.unpack(self._exactly(_HEADER.size))
                limit = MAX_MESSAGE if kind == MESSAGE else CHUNK + 1024
                if length > limit:
                    raise ProtocolError(f"The other node sent a frame of {length} bytes")  # noqa: TRY301
                self._take(kind, flags, number, self._exactly(length))
        except MigrationError as error:
            self._fail(error)
        except (OSError, ValueError) as error:
            self._fail(ConnectionBroken(f"The connection broke: {error}"))
        except Exception as error:
            self._fail(ProtocolError(f"The other node sent what cannot be read: {error!r}"))
            raise

    def _greeted(self) -> None:
        """Skip what login scripts may print, up to the other side's greeting."""
        noise = b""
        while not noise.endswith(GREETING):
            if len(noise) > MAX_NOISE:
                raise ProtocolError(
                    "The other node answers with something else than pyvz",
                    details=noise[:500].decode("utf-8", "replace"),
                )
            noise += self._exactly(1)

    def _exactly(self, count: int) -> bytearray:
        data = bytearray(count)
        free = memoryview(data)
        silent = 0.0
        while free:
            try:
                got = os.readv(self._reading, [free])
            except BlockingIOError:
                silent = 0.0 if _ready(self._reading, select.POLLIN) else silent + _LOOK
                self._quiet(silent)
                continue
            if not got:
                raise self._ended()
            silent = 0.0
            self.received += got
            free = free[got:]
        return data

    def _quiet(self, silent: float) -> None:
        self.check()
        if silent > self.silence:
            raise ConnectionBroken(f"The other node has been silent for {self.silence:g} s")

    def _ended(self) -> ConnectionBroken:
        time.sleep(0.1)  # for its last words
        return ConnectionBroken(
            "The connection to the other node has ended", details=self._last_words()
        )

    def _take(self, kind: int, flags: int, number: int, payload: bytearray) -> None:
        if kind == MESSAGE:
            message = messages.parse(bytes(payload))
            with self._changed:
                if len(self._messages) >= _QUEUED:
                    raise ProtocolError("The other node sends messages that nobody asked for")
                self._messages.append(message)
                self._changed.notify_all()
        elif kind == DATA:
            self.channel(number).arrived(_expanded(payload) if flags & _COMPRESSED else payload)
        elif kind == END:
            self.channel(number).ended()
        elif kind == CREDIT and len(payload) == _CREDIT.size:
            self.channel(number).credited(_CREDIT.unpack(payload)[0])
        elif kind == REFUSED:
            self.channel(number).refused()
        elif kind != PING:
            raise ProtocolError(f"The other node sent a frame of kind {kind}")

    def _ping(self) -> None:
        interval = min(5.0, self.silence / 4)
        with contextlib.suppress(MigrationError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._broken is not None, interval)
                self.check()
                self._frame(PING, 0)

    # The stream

    def _frame(self, kind: int, number: int, payload: Buffer = b"", flags: int = 0) -> None:
        self._write(_HEADER.pack(kind, flags, number, len(payload)), payload)

    def _write(self, *parts: Buffer) -> None:
        with self._sending:
            self.check()
            left = [memoryview(part) for part in parts if len(part)]
            size = sum(map(len, left))
            began, stuck = time.monotonic(), 0.0
            while left:
                try:
                    count = os.writev(self._writing, left)
                except BlockingIOError:
                    stuck = 0.0 if _ready(self._writing, select.POLLOUT) else stuck + _LOOK
                    self._full(stuck)
                    continue
                except OSError as error:
                    broken = ConnectionBroken(
                        "The connection to the other node has ended", details=self._last_words()
                    )
                    self._fail(broken)
                    raise broken from error
                self.sent += count
                left, stuck = _after(left, count), 0.0
            self.pace.sent(size, time.monotonic() - began)

    def _full(self, stuck: float) -> None:
        self.check()
        if stuck > self.silence:
            broken = ConnectionBroken("The other node takes no more data")
            self._fail(broken)
            raise broken

    def _fail(self, error: MigrationError) -> None:
        with self._changed:
            if self._broken is None:
                self._broken = error
            self._changed.notify_all()

    def _wait(self, deadline: float, what: str, poll: Callable[[], None] | None = None) -> None:
        """Wait for a change; the caller holds `_changed` and looks again."""
        if self._broken is not None:
            raise self._broken
        left = deadline - time.monotonic()
        if left <= 0:
            raise Timeout(f"The other node did not send {what} in time")
        self._changed.wait(min(left, 0.5))
        if poll is not None:
            poll()


class Channel:
    """A stream of bytes each way beside the messages, with flow control."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self.number = number
        self._arrived: deque[Buffer] = deque()
        self._waiting = 0  # bytes in _arrived
        self._over = False
        self._refused = False  # by the other side
        self._unwanted = False  # by us
        self._credit = WINDOW
        self._plain = 0  # frames to send without trying to compress them
        self.sent = 0
        self.received = 0

    def write(self, data: Buffer, *, poll: Callable[[], None] | None = None) -> None:
        """Send data; waits while the other side is behind."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            self._write_chunk(view[start : start + CHUNK], poll)

    def _write_chunk(self, chunk: memoryview, poll: Callable[[], None] | None) -> None:
        wire = self._wire
        with wire._changed:
            deadline = time.monotonic() + 10 * wire.silence
            while self._credit < len(chunk) and not self._refused:
                wire._wait(deadline, "room for data", poll)
            if self._refused:
                raise Refused("The other node does not take the data any more")
            self._credit -= len(chunk)
        self.sent += len(chunk)
        payload, flags = self._packed(chunk)
        wire._frame(DATA, self.number, payload, flags)

    def _packed(self, chunk: memoryview) -> tuple[Buffer, int]:
        """Compress where it pays; after a frame that did not shrink, or was not worth the time, not
        for a while.
        """
        if not self._wire._compress or len(chunk) < 512:
            return chunk, 0
        if self._plain:
            self._plain -= 1
            return chunk, 0
        pace, began = self._wire.pace, time.monotonic()
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(chunk)
        pace.packed(len(chunk), len(packed), time.monotonic() - began)
        if len(packed) > _PAYS * len(chunk) or not pace.pays():
            self._plain = _PAUSE
            return chunk, 0
        return packed, _COMPRESSED

    def end(self) -> None:
        """Say that no more data comes."""
        self._wire._frame(END, self.number)

    def read(self, timeout: float, *, poll: Callable[[], None] | None = None) -> Buffer:
        """Return the next piece of data, b"" at its end."""
        wire = self._wire
        deadline = time.monotonic() + timeout
        with wire._changed:
            while not self._arrived and not self._over:
                wire._wait(deadline, "data", poll)
            if not self._arrived:
                return b""
            data = self._arrived.popleft()
            self._waiting -= len(data)
        self.received += len(data)
        wire._frame(CREDIT, self.number, _CREDIT.pack(len(data)))
        return data

    def refuse(self) -> None:
        """Tell the other side to stop; what still comes is thrown away."""
        with self._wire._changed:
            self._unwanted = True
            self._arrived.clear()
            self._waiting = 0
        with contextlib.suppress(MigrationError):
            self._wire._frame(REFUSED, self.number)

    def abandon(self) -> None:
        """Let whoever reads here find the end at once."""
        with self._wire._changed:
            self._unwanted = True
            self._arrived.clear()
            self._over = True
            self._wire._changed.notify_all()

    # Called by the reading thread

    def refused(self) -> None:
        """The other side takes no more."""
        with self._wire._changed:
            self._refused = True
            self._wire._changed.notify_all()

    def arrived(self, data: Buffer) -> None:
        """Take data from the other side."""
        with self._wire._changed:
            if self._unwanted:
                return
            if self._over or self._waiting + len(data) > WINDOW:
                raise ProtocolError("The other node sent more data than it may")
            self._arrived.append(data)
            self._waiting += len(data)
            self._wire._changed.notify_all()

    def ended(self) -> None:
        """Take note that no more comes."""
        with self._wire._changed:
            self._over = True
            self._wire._changed.notify_all()

    def credited(self, count: int) -> None:
        """The other side has taken `count` bytes out."""
        with self._wire._changed:
            self._credit += count
            if self._credit > WINDOW:
                raise ProtocolError("The other node gave room that there is not")
            self._wire._changed.notify_all()


class Reader:
    """Reads a channel in pieces of wanted length."""

    def __init__(
        self, channel: Channel, timeout: float, poll: Callable[[], None] | None = None
    ) -> None:
        self._channel = channel
        self._timeout = timeout
        self._poll = poll
        self._left = memoryview(b"")

    def some(self, limit: int) -> memoryview:
        """Return between 1 and `limit` bytes, none at the end."""
        if not self._left:
            self._left = memoryview(self._channel.read(self._timeout, poll=self._poll))
        taken, self._left = self._left[:limit], self._left[limit:]
        return taken

    def exactly(self, count: int) -> bytes:
        """Return `count` bytes; raises ProtocolError when the data ends before."""
        data = bytearray()
        while len(data) < count:
            got = self.some(count - len(data))
            if not got:
                raise ProtocolError("The data of the other node ended too early")
            data += got
        return bytes(data)


def _expanded(payload: Buffer) -> bytes:
    try:
        # The frame's own word on its size is believed by the library, so it is asked first.
        if not 0 < zstandard.frame_content_size(payload) <= CHUNK:
            raise ProtocolError("The other node sent a frame of an impossible size")
        return bytes(zstandard.ZstdDecompressor().decompress(payload))
    except zstandard.ZstdError as error:
        raise ProtocolError("The other node sent a damaged frame") from error


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of PARTS when COUNT bytes of them are gone."""
    while parts and count >= len(parts[0]):
        count -= len(parts[0])
        parts = parts[1:]
    return [parts[0][count:], *parts[1:]] if parts else []


def _ready(fd: int, event: int) -> bool:
    """Wait _LOOK seconds at most.  Silence is counted in these, not by the clock: a node that stood
    still itself (a machine that was paused, a processor taken away) accuses no other.
    """
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(_LOOK * 1000))
