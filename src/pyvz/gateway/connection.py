"""One client of libvirt's protocol: its calls, its events, its streams, and its end.

Calls are answered in the order in which they are done.  Reading never waits for a call, so that a
ping is answered at once whatever else happens; a client with too many calls under way is told so.
Rights are by the table: on a read-only connection a procedure marked `w` never reaches its handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pyvz.errors import InternalError, VZError
from pyvz.gateway import failure, frame, procedures
from pyvz.gateway.callbacks import Callbacks
from pyvz.gateway.failure import Failure
from pyvz.gateway.frame import KEEPALIVE, QEMU, REMOTE, VERSION, BadFrame, Frame, Status, Type
from pyvz.gateway.office import Office, Peer
from pyvz.gateway.procedures import EVENT, OPENING, WRITE, Procedure
from pyvz.gateway.streams import Streams
from pyvz.gateway.xdr import BadData, codec, pack, unpack

CALLS: Final = 64  # under way at a time
SEND_TIMEOUT: Final = 60.0  # seconds that a client may take to read what waits for it
BACKLOG: Final = 4 << 20  # bytes that may wait for it before its events are dropped

_OBJECTS: Final = ("dom", "vol", "pool", "net")  # arguments that say what a call is about

logger = logging.getLogger(__name__)

Values = Mapping[str, Any]
Handler = Callable[["Call", dict[str, Any]], Awaitable[Values | None]]


class Call:
    """One call under way, as its handler sees it."""

    def __init__(self, client: Client, procedure: Procedure, request: Frame) -> None:
        self.client = client
        self.office = client.office
        self.procedure = procedure
        self.request = request


class Client:
    """One connection.  `serve` runs until it ends and leaves nothing behind."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
        office: Office,
        handlers: Mapping[str, Handler],
        *,
        readonly: bool,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.peer = peer
        self.office = office
        self._handlers = handlers
        self.readonly = readonly  # the socket's; opening may make it so, never take it back
        self.secure = True  # local, or encrypted
        self.uri = ""
        self.opened = False
        self.callbacks = Callbacks(self.tell)
        self.streams = Streams(self)
        self._calls: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Answer the client until it goes, or sends what is no frame."""
        try:
            while (request := await frame.read(self._reader)) is not None:
                await self._take(request)
        except (BadFrame, ConnectionError, TimeoutError) as error:
            logger.info("libvirt client %s: cut off: %s", self.peer, error)
        finally:
            await self._end()

    async def send(self, packet: Frame) -> None:
        """Send a frame; waits for a client that reads slowly, not for ever.

        Raises ConnectionError, TimeoutError.
        """
        async with self._sending, asyncio.timeout(SEND_TIMEOUT):
            self._writer.write(packet.to_bytes())
            await self._writer.drain()

    def tell(self, name: str, message: Values) -> None:
        """Send an event; one for a client that does not read is dropped with the connection."""
        procedure = procedures.by_name()[name]
        if self._writer.transport.get_write_buffer_size() > BACKLOG:
            self._writer.transport.abort()
            return
        payload = pack(procedure.arguments, message)
        self._writer.write(frame.message(procedure.number, payload).to_bytes())

    # -- parts ----------------------------------------------------------------------------------

    async def _take(self, request: Frame) -> None:
        if request.program == KEEPALIVE:
            if request.procedure == frame.PING:
                await self.send(request._replace(procedure=frame.PONG))
            return
        if request.type in {Type.STREAM, Type.STREAM_HOLE}:
            await self.streams.take(request)
            return
        if request.type is not Type.CALL:
            raise BadFrame(f"a client sends no frame of type {request.type.name}")
        if len(self._calls) >= CALLS:
            busy = Failure(failure.FAILED, f"More than {CALLS} calls of one connection at a time")
            await self._fail(request, busy)
            return
        task = asyncio.create_task(self._answer(request))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, request: Frame) -> None:
        """Answer one call, with results or with an error.  Nothing but cancellation leaves it."""
        try:
            procedure, handler = self._find(request)
            arguments = _unpacked(procedure, request)
            call = Call(self, procedure, request)
            results = await handler(call, arguments)
            assert procedure.results is not None  # noqa: S101  events are refused by _find
            payload = pack(procedure.results, results or {})
            await self.send(request.answer(Status.OK, payload))
            self.streams.answered(request.serial)
        except VZError as error:
            await self._fail(request, error)
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except Exception:  # a defect in one call is no reason to end all others
            logger.exception("libvirt call %d", request.procedure)
            await self._fail(request, InternalError("An internal error; vzd.log has the details"))

    def _find(self, request: Frame) -> tuple[Procedure, Handler]:
        """Return what was called and who answers it; raises Failure."""
        if request.program not in {REMOTE, QEMU} or request.version != VERSION:
            raise Failure(failure.UNKNOWN_PROGRAM, f"Unknown program 0x{request.program:x}")
        procedure = procedures.by_number(request.program).get(request.procedure)
        if self.readonly and procedure is not None and procedure.right == WRITE:
            raise Failure(failure.DENIED, f"{procedure.name} is forbidden for read-only access")
        handler = self._handlers.get(procedure.name) if procedure is not None else None
        if procedure is None or procedure.right == EVENT or handler is None:
            name = procedure.name if procedure is not None else f"number {request.procedure}"
            raise Failure(failure.NO_SUPPORT, f"This function is not supported: {name}")
        if not self.opened and procedure.right != OPENING:
            raise Failure(failure.OPERATION_INVALID, "The connection has not been opened")
        return procedure, handler

    async def _fail(self, request: Frame, error: VZError) -> None:
        self.streams.failed(request.serial)
        payload = pack(codec("error"), failure.described(error))
        with suppress(ConnectionError, TimeoutError):
            await self.send(request.answer(Status.ERROR, payload))

    async def _end(self) -> None:
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self.streams.close()
        self._writer.close()
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._writer.wait_closed()


def _unpacked(procedure: Procedure, request: Frame) -> dict[str, Any]:
    try:
        found: dict[str, Any] = unpack(procedure.arguments, request.payload)
    except BadData as error:
        raise Failure(
            failure.INVALID_ARGUMENT, f"The arguments of {procedure.name} make no sense: {error}"
        ) from error
    return found


def asking(function: Callable[..., Values | None]) -> Handler:
    """Make a handler of a question: FUNCTION(call, **arguments) runs in a thread."""

    async def handle(call: Call, arguments: dict[str, Any]) -> Values | None:
        return await call.office.query(partial(function, call, **arguments))

    return handle


def working(function: Callable[..., Values | None]) -> Handler:
    """Make a handler of what changes something: FUNCTION(call, progress, **arguments) is a task."""

    async def handle(call: Call, arguments: dict[str, Any]) -> Values | None:
        target: Mapping[str, Any] = next(
            (arguments[key] for key in _OBJECTS if arguments.get(key)), {}
        )
        ref = str(target.get("name", ""))
        return await call.office.work(
            call.procedure.name,
            ref,
            lambda progress: function(call, progress, **arguments),
            call.client.peer,
        )

    return handle
