"""The endpoint: the two Unix sockets on which libvirt's clients look for the driver `vz`, and what
vz.conf opens for the network (remote.py).

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

from pyvz.errors import VZError
from pyvz.gateway import remote
from pyvz.gateway.connection import Client
from pyvz.gateway.events import Relay
from pyvz.gateway.handlers import handlers
from pyvz.gateway.office import Office, Peer
from pyvz.store.paths import Paths

CLIENTS: Final = 500
REMOTE_CLIENTS: Final = 100  # of them from the network, so that the node's own always get in
BACKLOG: Final = 512  # a local client that finds it full is refused at once
NOBODY: Final = -1  # the uid of a client of the network
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
        await self._listen_to_the_network()
        self._relay.start()

    async def _listen_to_the_network(self) -> None:
        """Listen where vz.conf says; what cannot be is logged, and the node is served without."""
        node = self._office.node
        try:
            wanted = remote.listeners(node.config(), node.paths.root)
        except VZError as error:
            logger.error("no network for libvirt's clients: %s", error)  # noqa: TRY400  plain words
            return
        for place, context in wanted:
            more = {"ssl": context, "ssl_handshake_timeout": remote.HANDSHAKE} if context else {}
            greet = partial(self._greet, secure=context is not None)
            try:
                server = await asyncio.start_server(greet, *place, backlog=BACKLOG, **more)  # type: ignore[arg-type]
            except OSError as error:
                logger.error("libvirt's clients cannot come to %s:%d: %s", *place, error)  # noqa: TRY400
                continue
            self._servers.append(server)
            if context is None and not place.is_local:
                logger.warning("everybody who reaches %s:%d can do everything", *place)

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
        self._office.roster.close()

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, secure: bool
    ) -> None:
        """Serve a client of the network, when its certificate lets it in."""
        name = remote.name_of(writer.get_extra_info("peercert"))
        address = writer.get_extra_info("peername")[0]
        if secure and not remote.allowed(self._office.node.config(), name):
            logger.warning("libvirt client '%s' at %s is not in LIBVIRT_CLIENTS", name, address)
            writer.close()
            return
        if sum(each.peer.uid == NOBODY for each in self._clients) >= REMOTE_CLIENTS:
            logger.warning("libvirt client at %s: %d are there", address, REMOTE_CLIENTS)
            writer.close()
            return
        if secure:
            writer.write(remote.WELCOME)
        logger.info("libvirt client '%s' at %s", name, address)
        peer = Peer(NOBODY, 0, f"{name}@{address}")
        await self._serve(reader, writer, peer, readonly=False, secure=secure)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, readonly: bool
    ) -> None:
        peer = _peer(writer.get_extra_info("socket"))
        await self._serve(reader, writer, peer, readonly=readonly, secure=True)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
        *,
        readonly: bool,
        secure: bool,
    ) -> None:
        if len(self._clients) >= CLIENTS:
            logger.warning("a libvirt client is turned away: %d are there", CLIENTS)
            writer.close()
            return
        client = Client(reader, writer, peer, self._office, self._handlers, readonly=readonly)
        client.secure = secure
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
