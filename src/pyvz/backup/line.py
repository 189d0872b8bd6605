"""The line between a node and the storage of its backups on another one: questions and answers.

    greeting   "PYVZ-BACKUP 1\\n" from the storage; what comes before it (a login script) is dropped
    message    lengths of the JSON and of the data (4 bytes each, big-endian), the JSON object, data

The node asks, the storage answers in the same order; a question of ONE_WAY has no answer.  An
answer is {"result": ...} or {"error": class, "message": ..., "details": ..., "hint": ...}.  Both
sides take nothing longer than the limits here, and check what they get: who is at the other end is
ssh's business.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from pyvz import errors
from pyvz.errors import ConnectionBroken, Timeout, VZError

GREETING: Final = b"PYVZ-BACKUP 1\n"
ONE_WAY: Final = frozenset({"put"})
_NOISE: Final = 64 << 10  # bytes before the greeting
_TEXT: Final = 8 << 20
_DATA: Final = 256 << 20  # a manifest
_HEADER: Final = struct.Struct("!II")
_TICK: Final = 0.5  # seconds between two looks whether it was called off

Message = dict[str, Any]
Poll = Callable[[], None]


class Line:
    """One end.  reading, writing: descriptors, which stay the caller's."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)

    def greet(self) -> None:
        """Say that the storage is here."""
        self._write(GREETING, 60.0)

    def await_greeting(self, timeout: float, poll: Poll) -> None:
        """Skip all until the storage's greeting; raises ConnectionBroken, Timeout."""
        seen = b""
        while not seen.endswith(GREETING):
            if len(seen) > _NOISE:
                raise ConnectionBroken("What answers is no storage of backups")
            seen += self._read(1, timeout, poll)

    def send(self, message: Message, data: bytes = b"", *, timeout: float = 600.0) -> None:
        """Send one message."""
        text = json.dumps(message, separators=(",", ":")).encode()
        self._write(_HEADER.pack(len(text), len(data)) + text + data, timeout)

    def receive(self, timeout: float | None, poll: Poll = lambda: None) -> tuple[Message, bytes]:
        """Return the next message and its data.

        Raises ConnectionBroken, Timeout, what `poll` raises.
        """
        text_length, data_length = _HEADER.unpack(self._read(_HEADER.size, timeout, poll))
        if text_length > _TEXT or data_length > _DATA:
            raise ConnectionBroken("A message is too long")
        try:
            message = json.loads(self._read(text_length, timeout, poll))
        except (ValueError, RecursionError) as error:
            raise ConnectionBroken("A message cannot be read") from error
        if not isinstance(message, dict):
            raise ConnectionBroken("A message is no object")
        return message, self._read(data_length, timeout, poll)

    def _read(self, count: int, timeout: float | None, poll: Poll) -> bytes:
        found = bytearray()
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(found) < count:
            try:
                data = os.read(self._reading, min(count - len(found), 1 << 20))
            except BlockingIOError:
                _wait(self._reading, select.POLLIN, deadline, poll)
                continue
            except ConnectionError as error:
                raise ConnectionBroken("The connection broke") from error
            if not data:
                raise ConnectionBroken("The connection ended")
            found += data
        return bytes(found)

    def _write(self, data: bytes, timeout: float) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + timeout
        while view:
            try:
                view = view[os.write(self._writing, view) :]
            except BlockingIOError:
                _wait(self._writing, select.POLLOUT, deadline, lambda: None)
            except (BrokenPipeError, ConnectionError) as error:
                raise ConnectionBroken("The connection broke") from error


def _wait(fd: int, event: int, deadline: float | None, poll: Poll) -> None:
    poller = select.poll()
    poller.register(fd, event)
    while not poller.poll(_TICK * 1000):
        poll()
        if deadline is not None and time.monotonic() > deadline:
            raise Timeout("The storage of backups did not answer in time")


def error_message(error: VZError) -> Message:
    """Return the answer that carries an error."""
    return {
        "error": type(error).__name__,
        "message": error.message,
        "details": error.details,
        "hint": error.hint,
    }


def error_of(message: Message, host: str) -> VZError:
    """Return the error that an answer carries, told of its node."""
    kind = getattr(errors, str(message["error"]), VZError)
    if not (isinstance(kind, type) and issubclass(kind, VZError)):
        kind = VZError
    text = str(message.get("message"))
    return kind(f"{host}: {text}", details=_text(message, "details"), hint=_text(message, "hint"))


def _text(message: Message, name: str) -> str:
    return str(message.get(name) or "")
