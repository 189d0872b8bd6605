"""The endpoint: the two Unix sockets on which libvirt's clients look for the driver `vz`.

<root>/run/libvirt/virtvzd-sock         root only
<root>/run/libvirt/virtvzd-sock-ro      everybody, nothing can be changed

The first one alone makes a client take us for `vz:///system`, beside any libvirtd that serves other
drivers; without the second one, read-only clients are told something confusing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from pyvz.gateway.connection import Client
from pyvz.gateway.events import Relay
from pyvz.gateway.handlers import handlers
from pyvz.gateway.office import Office, Peer
from pyvz.store.paths import Paths

CLIENTS: Final = 500
BACKLOG: Final = 64
SOCKETS: Final = (("virtvzd-sock", 0o600, False), ("virtvzd-sock-ro", 0o666, True))

logger = logging.getLogger(__name__)


def directory(paths: Paths) -> Path:
    """Return where clients look for the sockets."""
    return paths.root / "run/libvirt"


class Gateway:
    """Serves libvirt's clients until `close`."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._handlers = handlers()
        self._clients: set[Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._relay = Relay(office, self._clients)

    async def start(self) -> None:
        """Listen; raises OSError."""
        place = directory(self._office.node.paths)
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, mode, readonly in SOCKETS:
            server = await asyncio.start_unix_server(
                partial(self._welcome, readonly=readonly),
                sock=_bound(place / name, mode),
                backlog=BACKLOG,
            )
            self._servers.append(server)
        self._relay.start()

    async def close(self) -> None:
        """Stop listening and cut off every client; calls under way are called off."""
        for server in self._servers:
            server.close()
        for name, _, _ in SOCKETS:
            (directory(self._office.node.paths) / name).unlink(missing_ok=True)
        await self._relay.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, readonly: bool
    ) -> None:
        if len(self._clients) >= CLIENTS:
            logger.warning("a libvirt client is turned away: %d are there", CLIENTS)
            writer.close()
            return
        peer = _peer(writer.get_extra_info("socket"))
        client = Client(reader, writer, peer, self._office, self._handlers, readonly=readonly)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        self._tasks.add(task)
        self._clients.add(client)
        try:
            await client.serve()
        except asyncio.CancelledError:
            if not writer.is_closing():
                writer.transport.abort()
        finally:
            self._clients.discard(client)
            self._tasks.discard(task)


def _bound(path: Path, mode: int) -> socket.socket:
    with suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(os.fspath(path))
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    sock.setblocking(False)  # noqa: FBT003  the name of the function
    return sock


def _peer(sock: socket.socket) -> Peer:
    """Return who is at the other end (unix(7): SO_PEERCRED)."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", data)
    return Peer(uid, pid)
