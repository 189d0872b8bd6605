"""The console of an environment, and the channels of a virtual machine, as streams."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call
from pyvz.gateway.failure import Failure
from pyvz.gateway.streams import Flow
from pyvz.model.grammar_machine import AGENT_CHANNEL
from pyvz.operations import execute, machinechannel

FORCE: Final = 1  # flag: take the console from who has it; ours has room for many
CHUNK: Final = 64 << 10  # bytes read at a time


class SocketFlow(Flow):
    """What passes between a socket of the keeper's or QEMU's and a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the scroll-back, then what is printed, until the environment ends."""
        with suppress(ConnectionError):
            while data := await self._reader.read(CHUNK):
                yield data

    async def feed(self, data: bytes) -> None:
        """Send DATA, or type it."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def close(self) -> None:
        """Leave it."""
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
    await _open(call, fd)


async def domain_open_channel(call: Call, arguments: dict[str, Any]) -> None:
    """Open the channel of that name, without one the agent's; who has it open keeps it."""
    if arguments["flags"] & ~FORCE:
        raise Failure(failure.UNSUPPORTED, f"A channel with the flags 0x{arguments['flags']:x}")
    name = arguments["name"] or AGENT_CHANNEL
    await _open(call, await call.office.query(partial(_channel, call, arguments["dom"], name)))


def _channel(call: Call, dom: dict[str, Any], name: str) -> int:
    node, found = call.office.node, domain.find(call.office.node, dom)
    if not domain.is_machine(found):
        raise Failure(failure.OPERATION_UNSUPPORTED, f"{found.env.name} has no channels")
    return machinechannel.connect(node, found.env, name)


async def _open(call: Call, fd: int) -> None:
    """Let what comes from a socket, and what goes to it, be the stream of a call."""
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)  # noqa: FBT003  the name of the function
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    flow = SocketFlow(reader, writer)
    try:
        call.client.streams.open(call.request, flow)
    except Failure:
        await flow.close()
        raise
