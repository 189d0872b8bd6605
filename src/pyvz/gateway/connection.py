"""One client of libvirt's protocol: its calls, its events, its streams, and its end.

Calls are answered in the order in which they are done, some questions at once from memory
(prompt.py).  Reading never waits for a call, so that a
ping is answered at once whatever else happens; a client with too many calls under way is told so.
Rights are by the table: on a read-only connection a procedure marked `w` never reaches its handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from pyvz.errors import InternalError, VZError
from pyvz.gateway import failure, frame, procedures
from pyvz.gateway.callbacks import Callbacks
from pyvz.gateway.failure import Failure
from pyvz.gateway.frame import KEEPALIVE, LXC, QEMU, REMOTE, VERSION, BadFrame, Frame, Status, Type
from pyvz.gateway.office import Office, Peer
from pyvz.gateway.procedures import EVENT, OPENING, WRITE, Procedure
from pyvz.gateway.streams import Streams
from pyvz.gateway.xdr import BadData, Packed, codec, pack, unpack

CALLS: Final = 64  # under way at a time
SEND_TIMEOUT: Final = 60.0  # seconds that a client may take to read what waits for it
BACKLOG: Final = 4 << 20  # bytes that may wait for it before its events are dropped
_CHUNK: Final = 1 << 16  # bytes read at a time, and bytes of answers unread by a client in order

_LXC_ONLY: Final = (
    "The extras of libvirt-lxc are not served: prlctl enter and prlctl exec go into a container"
)
_OBJECTS: Final = ("dom", "vol", "pool", "net")  # arguments that say what a call is about

logger = logging.getLogger(__name__)

Values = Mapping[str, Any]
Results = Values | Packed | None
Handler = Callable[["Call", dict[str, Any]], Awaitable[Results]]
Quick = Callable[..., Results]


class Handlers(NamedTuple):
    """Who answers.  quick: by number, the questions that may be answered at once, or None."""

    by_name: Mapping[str, Handler]
    quick: Mapping[int, tuple[Procedure, Quick]]


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
        handlers: Handlers,
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
            cutter = frame.Cutter()
            while data := await self._reader.read(_CHUNK):
                for request in cutter.feed(data):
                    if not self._answered(request):
                        await self._take(request)
            cutter.end()
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

    def _answered(self, request: Frame) -> bool:
        """Answer a question at once, from memory; whatever else it is goes the long way."""
        found = self._handlers.quick.get(request.procedure)
        if found is None or not self._plain(request):
            return False
        procedure, quick = found
        try:
            arguments = unpack(procedure.arguments, request.payload)
            results = quick(Call(self, procedure, request), **arguments)
            if results is None:
                return False
            payload = packed(procedure, results)
        except Exception:  # noqa: BLE001  told, and logged, on the long way
            return False
        self._writer.write(request.answer(Status.OK, payload).to_bytes())
        return True

    def _plain(self, request: Frame) -> bool:
        """Whether it is an ordinary call of a client that is open and reads its answers."""
        return (
            request.type is Type.CALL
            and request.program == REMOTE
            and request.version == VERSION
            and self.opened
            and self._writer.transport.get_write_buffer_size() < _CHUNK
        )

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
            payload = packed(procedure, results)
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
            raise Failure(
                failure.UNKNOWN_PROGRAM,
                _LXC_ONLY if request.program == LXC else f"Unknown program 0x{request.program:x}",
            )
        procedure = procedures.by_number(request.program).get(request.procedure)
        if self.readonly and procedure is not None and procedure.right == WRITE:
            raise Failure(failure.DENIED, f"{procedure.name} is forbidden for read-only access")
        handler = self._handlers.by_name.get(procedure.name) if procedure is not None else None
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


def packed(procedure: Procedure, results: Results) -> bytes:
    """Return the results of a procedure as they are sent."""
    if isinstance(results, Packed):
        return results
    assert procedure.results is not None  # noqa: S101  nobody answers for an event
    return pack(procedure.results, results or {})


def _unpacked(procedure: Procedure, request: Frame) -> dict[str, Any]:
    try:
        found: dict[str, Any] = unpack(procedure.arguments, request.payload)
    except BadData as error:
        raise Failure(
            failure.INVALID_ARGUMENT, f"The arguments of {procedure.name} make no sense: {error}"
        ) from error
    return found


def asking(function: Callable[..., Results]) -> Handler:
    """Make a handler of a question: FUNCTION(call, **arguments) runs in a thread."""

    async def handle(call: Call, arguments: dict[str, Any]) -> Results:
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
