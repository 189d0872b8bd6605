"""Streams of one client: data both ways under the serial of the call that opened them.

A handler opens a stream before it returns; its data flows once the call has been answered:

    client  call 201            serial 7
    server  reply               serial 7   `answered`
    both    continue + data     serial 7   until
    server  continue + nothing             end of what we have; the client then says ok
    client  ok | error                     done or called off; echoed as ok, and it is forgotten
    server  error + structure              it failed, for both

A sparse stream has holes between its data: packets of a kind of their own, with a length.  There
are no credits: a slow reader holds up its sender through the socket (libvirt-rpc.md, 3.2).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvz.errors import InternalError, VZError
from pyvz.gateway import failure, frame
from pyvz.gateway.failure import Failure
from pyvz.gateway.frame import Frame, Status, Type
from pyvz.gateway.xdr import BadData, codec, pack, unpack

if TYPE_CHECKING:
    from pyvz.gateway.connection import Client

LIMIT: Final = 32  # open streams of one client

logger = logging.getLogger(__name__)


class Hole(NamedTuple):
    """Bytes of nothing in a sparse stream."""

    length: int


class Flow:
    """The node's end of a stream.  All methods run in the event loop and may raise VZError."""

    async def data(self) -> AsyncIterator[bytes | Hole]:
        """Yield what is for the client, until there is no more."""
        return
        yield b""  # this makes it a generator

    async def feed(self, data: bytes) -> None:
        """Take what the client sends; waits where it is more than can be taken."""
        raise Failure(failure.INVALID_ARGUMENT, f"This stream takes no data: {len(data)} bytes")

    async def skip(self, length: int) -> None:
        """Take a hole of the client's."""
        raise Failure(failure.INVALID_ARGUMENT, f"This stream takes no holes: {length} bytes")

    async def finish(self) -> None:
        """The client has sent everything: what it sent is to be kept."""

    async def close(self) -> None:
        """Give up what it holds; called once, also after an abort or a lost connection."""


class _Stream:
    """One open stream."""

    def __init__(self, request: Frame, flow: Flow) -> None:
        self.request = request
        self.flow = flow
        self.sending: asyncio.Task[None] | None = None


class Streams:
    """The open streams of one client, by serial."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._open: dict[int, _Stream] = {}

    def open(self, request: Frame, flow: Flow) -> None:
        """Open a stream for a call that is not answered yet; raises Failure."""
        if len(self._open) >= LIMIT or request.serial in self._open:
            raise Failure(failure.FAILED, f"More than {LIMIT} streams of one connection")
        self._open[request.serial] = _Stream(request, flow)

    def answered(self, serial: int) -> None:
        """Let the data flow: the call that opened the stream was answered."""
        stream = self._open.get(serial)
        if stream is not None and stream.sending is None:
            stream.sending = asyncio.create_task(self._send(stream))

    def failed(self, serial: int) -> None:
        """The call that opened the stream failed after all."""
        stream = self._open.pop(serial, None)
        if stream is not None:
            stream.sending = asyncio.create_task(stream.flow.close())

    async def take(self, packet: Frame) -> None:
        """Take a packet of the client; one for a stream that is gone is old news."""
        stream = self._open.get(packet.serial)
        if stream is None:
            return
        try:
            if packet.type is Type.STREAM_HOLE:
                await stream.flow.skip(_length(packet))
                return
            if packet.status is Status.CONTINUE:
                await stream.flow.feed(packet.payload)
                return
            if packet.status is Status.OK:
                await stream.flow.finish()
        except VZError as error:
            await self._broken(stream, error)
            return
        await self._forget(stream)
        await self._client.send(stream.request.packet(Status.OK))

    async def close(self) -> None:
        """End all streams: the client is gone."""
        for stream in tuple(self._open.values()):
            await self._forget(stream)

    async def _send(self, stream: _Stream) -> None:
        try:
            async for data in stream.flow.data():
                for packet in _packets(stream.request, data):
                    await self._client.send(packet)
            await self._client.send(stream.request.packet(Status.CONTINUE))
        except (ConnectionError, TimeoutError):
            return  # the connection ends, and this stream with it
        except VZError as error:
            await self._broken(stream, error)
        except Exception:
            logger.exception("a stream of libvirt call %d", stream.request.procedure)
            await self._broken(stream, InternalError("An internal error; vzd.log has the details"))

    async def _broken(self, stream: _Stream, error: VZError) -> None:
        payload = pack(codec("error"), failure.described(error))
        with suppress(ConnectionError, TimeoutError):
            await self._client.send(stream.request.packet(Status.ERROR, payload))
        await self._forget(stream)

    async def _forget(self, stream: _Stream) -> None:
        if self._open.pop(stream.request.serial, None) is None:
            return
        if stream.sending is not None and stream.sending is not asyncio.current_task():
            stream.sending.cancel()
            await asyncio.gather(stream.sending, return_exceptions=True)
        await stream.flow.close()


def _packets(request: Frame, data: bytes | Hole) -> Iterator[Frame]:
    """Yield the packets that carry a piece of a stream."""
    if isinstance(data, Hole):
        payload = pack(codec("stream_hole"), {"length": data.length, "flags": 0})
        yield request.packet(Status.CONTINUE, payload)._replace(type=Type.STREAM_HOLE)
        return
    for at in range(0, len(data), frame.DATA_LIMIT):
        yield request.packet(Status.CONTINUE, data[at : at + frame.DATA_LIMIT])


def _length(packet: Frame) -> int:
    """Return how long a hole of the client's is; raises Failure."""
    try:
        hole = unpack(codec("stream_hole"), packet.payload)
    except BadData as error:
        raise Failure(failure.INVALID_ARGUMENT, f"A hole that is none: {error}") from error
    if hole["length"] < 0:
        raise Failure(failure.INVALID_ARGUMENT, "A hole cannot be shorter than nothing")
    return int(hole["length"])
