"""Serving Varlink on the node's socket: connections, limits, permissions, errors.

asyncvarlink reads and writes the messages and knows the types; what a daemon that must not die
needs beside that is here: a cap on the size of a message, on the number of connections and on what
waits for a slow reader, who may call what, and the notice that a client went away during a call.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import Any

from asyncvarlink import (
    AnnotatedResult,
    FileDescriptorArray,
    VarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkServerProtocol,
    VarlinkTransport,
)
from asyncvarlink.conversion import ConversionError, FileDescriptorVarlinkType
from asyncvarlink.interface import VarlinkMethodSignature
from asyncvarlink.types import JSONObject

from pyvz.daemon.access import Access, Caller, access_of, allowed, reader_group
from pyvz.daemon.replies import error_reply
from pyvz.errors import InternalError, PermissionDenied, UsageError, VZError

MAX_MESSAGE = 4 << 20  # bytes of one call
BACKLOG = 512
SHORTAGE_PAUSE = 0.5  # seconds without accepting when descriptors or memory are short
RESERVED_FDS = 256  # for everything but connections

logger = logging.getLogger(__name__)


class _Transport(VarlinkTransport):
    """Reads once per wake-up, so that a client that never stops sending holds up nobody.

    Without a boundary predictor asyncvarlink reads MAX_RECV_FDS bytes at a time; the predictor
    would read on until the socket is empty.  It only serves to tell which descriptors belong to
    which call: here, those that come go to the first call that was read with them, and a client
    that sends some sends one call at a time.
    """

    MAX_RECV_FDS = 8192


class Connection(VarlinkServerProtocol):
    """One client.  Its calls are answered one after the other, in their order."""

    def __init__(
        self,
        sock: socket.socket,
        caller: Caller,
        access: Access,
        registry: VarlinkInterfaceRegistry,
        failed: Callable[[str, BaseException], InternalError],
    ) -> None:
        super().__init__()
        self._socket = sock
        self.caller = caller
        self._access = access
        self._registry = registry
        self._failed = failed
        self._serving: asyncio.Task[None] | None = None

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take bytes from the client; a client that sends no Varlink is cut off."""
        if len(self._recv_buffer) + len(data) > MAX_MESSAGE:
            self._cut("a message of more than 4 MiB")
            return
        try:
            super().message_received(data, fds)
        except (ValueError, RecursionError) as error:  # not UTF-8, endless nesting or digits
            self._cut(type(error).__name__)

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Cut off a client that sends something else than JSON objects."""
        del data, fds
        self._cut(f"{type(err).__name__}: {err}")

    def _cut(self, why: str) -> None:
        logger.warning(
            "connection of uid %d pid %d cut off: %s", self.caller.uid, self.caller.pid, why[:200]
        )
        self._recv_buffer = b""
        if self._transport is not None:
            self._transport.abort()

    def request_received(
        self, obj: JSONObject, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Take one call; ignored when the connection was cut off meanwhile."""
        if self._transport is None or self._transport.is_closing():
            return None
        future: asyncio.Future[None] | None = super().request_received(obj, fds)
        return future

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None]:
        """Answer a call; the next one is read when the returned future is done."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(call, fds))
        self._serving.add_done_callback(lambda _: done.set_result(None))
        return done

    async def _serve(self, call: VarlinkMethodCall, fds: FileDescriptorArray | None) -> None:
        """Answer one call with replies or an error.  Nothing leaves this function.

        fds: they came along, and are closed when the call is done.
        """
        try:
            error = await self._answered(call, fds)
        except OSError as gone:  # the client does not read any more
            logger.debug("%s: the client is gone: %s", call.method, gone)
            return
        except asyncio.CancelledError:
            logger.debug("%s: the client went away", call.method)
            return
        if error is not None and not call.oneway:
            self.send_error(error)

    async def _answered(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> VarlinkErrorReply | None:
        """Run the method and send its replies; return the error that it ended with."""
        try:
            if not allowed(self._access, call.method):
                raise PermissionDenied(  # noqa: TRY301
                    f"you may not call {call.method}",
                    hint="Be root, or a member of the group vz for reading.",
                )
            method, signature = self._registry.lookup_method(call)
            parameters = _parameters(call, signature, fds)
            if signature.more:
                with self._hangup():
                    await self._replies(method(**parameters), signature)
            else:
                result = method(**parameters)
                if isinstance(result, Awaitable):
                    result = await result
                if not call.oneway:
                    await self._reply(result, signature)
        except VarlinkErrorReply as error:
            return error
        except VZError as error:
            return error_reply(error)
        except OSError:
            if self._transport is None or self._transport.is_closing():
                raise
            logger.exception("%s", call.method)
            return error_reply(self._failed(call.method, OSError("see the log")))
        except Exception as error:
            logger.exception("%s", call.method)
            return error_reply(self._failed(call.method, error))
        return None

    async def _replies(
        self, generator: AsyncIterator[AnnotatedResult], signature: VarlinkMethodSignature
    ) -> None:
        async with aclosing(generator):  # type: ignore[type-var]
            async for result in generator:
                await self._reply(result, signature)
                if not result.continues:
                    return

    async def _reply(self, result: AnnotatedResult, signature: VarlinkMethodSignature) -> None:
        """Send one reply and wait until the kernel has it (so a slow reader slows its call)."""
        with FileDescriptorArray.new_managed() as fds:
            parameters = signature.return_type.tojson(
                result.parameters, {FileDescriptorVarlinkType: fds}
            )
            reply = VarlinkMethodReply(
                parameters, continues=result.continues, extensions=result.extensions
            )
            sent = self.send_reply(reply, [fd.fileno() for fd in fds], autoclose=False)
            fds.reference_until_done(sent)
        await sent

    @contextmanager
    def _hangup(self) -> Iterator[None]:
        """For the length of a call: cancel it when the client closes the connection.

        Reading is paused during a call, so the end of the stream would not be seen.  An epoll of
        its own with no events asked for tells exactly that both directions are closed (EPOLLHUP
        is always reported, epoll_ctl(2)); a client that only shut down its writing side goes on.
        """
        loop = asyncio.get_running_loop()
        with select.epoll() as watch:
            try:
                watch.register(self._socket.fileno(), 0)
            except (OSError, ValueError):  # closed already
                raise BrokenPipeError("the client is gone") from None
            loop.add_reader(watch.fileno(), self._gone, watch.fileno())
            try:
                yield
            finally:
                loop.remove_reader(watch.fileno())

    def _gone(self, watch: int) -> None:
        asyncio.get_running_loop().remove_reader(watch)
        self.hang_up()

    def hang_up(self) -> None:
        """Call off the call that is being answered."""
        if self._serving is not None:
            self._serving.cancel()


def _parameters(
    call: VarlinkMethodCall, signature: VarlinkMethodSignature, fds: FileDescriptorArray | None
) -> dict[str, Any]:
    """Return the call's parameters as Python values; raise UsageError that names the bad one."""
    beside = None if fds is None else {FileDescriptorVarlinkType: fds}
    try:
        converted: dict[str, Any] = signature.parameter_type.fromjson(call.parameters, beside)
    except ConversionError as error:
        where = ".".join(str(part) for part in error.location)
        raise UsageError(f"{call.method}: parameter {where}: {error.message}") from error
    return converted


class Server:
    """Accepts connections on a listening Unix socket.

    interfaces: makes the interfaces of one connection, for its caller.
    failed: turns a defect into the error for the client.
    """

    def __init__(
        self,
        sock: socket.socket,
        interfaces: Callable[[Caller], VarlinkInterfaceRegistry],
        failed: Callable[[str, BaseException], InternalError],
    ) -> None:
        self._socket = sock
        self._interfaces = interfaces
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._connections: dict[_Transport, Connection] = {}
        self._reader_gid = reader_group()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(16, (soft - RESERVED_FDS) // 2)  # a socket and its hang-up watch
        self._accepting = False
        sock.settimeout(0)

    def start(self) -> None:
        """Begin to accept."""
        self._socket.listen(BACKLOG)
        self._accept_more()

    def _accept_more(self) -> None:
        if not self._accepting and self._socket.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._socket, self._accept)

    def _accept_later(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket)

    def _accept(self) -> None:
        while len(self._connections) < self._limit:
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {EMFILE, ENFILE, ENOBUFS, ENOMEM}:
                    logger.warning("no connection accepted: %s", error)
                    self._accept_later()
                    self._loop.call_later(SHORTAGE_PAUSE, self._accept_more)
                return
            self._serve(sock)
        self._accept_later()  # until one of them closes

    def _serve(self, sock: socket.socket) -> None:
        caller = Caller.of(sock)
        access = access_of(caller, self._reader_gid)
        connection = Connection(sock, caller, access, self._interfaces(caller), self._failed)
        sock.settimeout(0)
        transport = _Transport(self._loop, sock, sock, connection, boundary_predictor=None)
        self._connections[transport] = connection
        transport.closed_future.add_done_callback(lambda _: self._closed(transport))

    def _closed(self, transport: _Transport) -> None:
        self._connections.pop(transport, None)
        self._accept_more()

    def stop(self) -> None:
        """Accept no more; connections go on."""
        self._accept_later()
        self._socket.close()

    async def close(self, timeout: float = 1.0) -> None:  # noqa: ASYNC109
        """Call off what is being answered, let the last replies out, and close everything."""
        for connection in self._connections.values():
            connection.hang_up()
        await asyncio.sleep(0)
        transports = list(self._connections)
        for transport in transports:
            transport.close()
        if transports:
            await asyncio.wait([each.closed_future for each in transports], timeout=timeout)
