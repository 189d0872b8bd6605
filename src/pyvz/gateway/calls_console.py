"""The console of an environment as a stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call
from pyvz.gateway.failure import Failure
from pyvz.gateway.streams import Flow
from pyvz.operations import execute

FORCE: Final = 1  # flag: take the console from who has it; ours has room for many
CHUNK: Final = 64 << 10  # bytes read at a time


class ConsoleFlow(Flow):
    """A console between the keeper's socket and a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the scroll-back, then what is printed, until the environment ends."""
        with suppress(ConnectionError):
            while data := await self._reader.read(CHUNK):
                yield data

    async def feed(self, data: bytes) -> None:
        """Type DATA."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def close(self) -> None:
        """Leave the console."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def domain_open_console(call: Call, arguments: dict[str, Any]) -> None:
    """Open the console; there is one, with the name `console0` or none."""
    if arguments["dev_name"] not in (None, "console0", "serial0"):
        raise Failure(
            failure.INVALID_ARGUMENT, f"There is no console device {arguments['dev_name']}"
        )
    node = call.office.node
    found = await call.office.query(lambda: domain.find(node, arguments["dom"]))
    fd = await call.office.query(lambda: execute.console(node, found.env.uuid))
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)  # noqa: FBT003  the name of the function
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    flow = ConsoleFlow(reader, writer)
    try:
        call.client.streams.open(call.request, flow)
    except Failure:
        await flow.close()
        raise
