"""Frames of libvirt's RPC: a length, a header of six words, and a payload; all of it big-endian.

    length  program  version  procedure  type  serial  status   payload

The length counts itself.  A frame that cannot be is the end of the connection; what a payload holds
is for `xdr` to say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

REMOTE: Final = 0x20008086
QEMU: Final = 0x20008087
LXC: Final = 0x00068000  # its extras are not served
KEEPALIVE: Final = 0x6B656570
VERSION: Final = 1
PING: Final = 1
PONG: Final = 2

LIMIT: Final = 32 << 20  # bytes of a frame that we send; older clients take 16 MiB
INCOMING_LIMIT: Final = 8 << 20  # of one that we take: a text of 4 MiB and what belongs to it
DATA_LIMIT: Final = 262120  # bytes of data in one packet of a stream

_HEADER: Final = struct.Struct(">7I")


class Type(IntEnum):
    """What a frame is."""

    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    """How it ended; CONTINUE is for streams."""

    OK = 0
    ERROR = 1
    CONTINUE = 2


class BadFrame(Exception):
    """Bytes that are no frame: the connection has to be closed."""


class Frame(NamedTuple):
    """One frame."""

    program: int
    version: int
    procedure: int
    type: Type
    serial: int
    status: Status
    payload: bytes

    def to_bytes(self) -> bytes:
        """Return it as it is sent; raises BadFrame when it is too long for a client."""
        length = _HEADER.size + len(self.payload)
        if length > LIMIT:
            raise BadFrame(f"a frame of {length} bytes is too long to be sent")
        head = _HEADER.pack(
            length, self.program, self.version, self.procedure, self.type, self.serial, self.status
        )
        return head + self.payload

    def answer(self, status: Status, payload: bytes) -> Frame:
        """Return the reply to this call."""
        return self._replace(type=Type.REPLY, status=status, payload=payload)

    def packet(self, status: Status, payload: bytes = b"") -> Frame:
        """Return a packet of the stream that this call opened."""
        return self._replace(type=Type.STREAM, status=status, payload=payload)


def message(procedure: int, payload: bytes) -> Frame:
    """Return an event for the client."""
    return Frame(REMOTE, VERSION, procedure, Type.MESSAGE, 0, Status.OK, payload)


class Cutter:
    """Cuts what comes in into frames."""

    def __init__(self, limit: int = INCOMING_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take what came; yield the frames that are whole now.  Raises BadFrame."""
        rest = self._rest
        rest += data
        at = 0
        while (left := len(rest) - at) >= _HEADER.size:
            length, program, version, procedure, kind, serial, status = _HEADER.unpack_from(
                rest, at
            )
            if not _HEADER.size <= length <= self._limit:
                raise BadFrame(f"a frame of {length} bytes is impossible")
            if left < length:
                break
            payload = bytes(rest[at + _HEADER.size : at + length])
            at += length
            try:
                words = Type(kind), serial, Status(status), payload
            except ValueError as error:
                raise BadFrame(str(error)) from error
            yield Frame(program, version, procedure, *words)
        del rest[:at]

    def end(self) -> None:
        """Nothing more comes; raises BadFrame in the middle of a frame."""
        if self._rest:
            raise BadFrame("the connection ended in the middle of a frame")
