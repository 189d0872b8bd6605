"""One client of the keeper: requests in, answers and events out, never waiting for it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pyvz.container import protocol
from pyvz.container.loop import GONE, READ, WRITE, Loop

_BACKLOG = 4096  # messages that a client may leave unread

Dispatch = Callable[["Connection", dict[str, Any], list[int]], None]


class Connection:
    """Owns the socket of one client."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        number: int,
        dispatch: Dispatch,
        closed: Callable[[Connection], None],
    ) -> None:
        self._loop = loop
        self.sock = sock
        self.number = number
        self.subscribed = False
        self._dispatch = dispatch
        self._closed = closed
        self._unsent: deque[tuple[dict[str, Any], list[int]]] = deque()
        sock.setblocking(False)  # noqa: FBT003  # the name of the function
        loop.add(sock.fileno(), READ, self._ready)

    @property
    def lagging(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._unsent)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send, now or when the client reads again; takes the descriptors over."""
        self._unsent.append((message, list(fds)))
        if len(self._unsent) > _BACKLOG:
            self.close()
        elif len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Hang up; idempotent."""
        if self.sock.fileno() < 0:
            return
        self._loop.remove(self.sock.fileno())
        self.sock.close()
        for _, fds in self._unsent:
            protocol.close_all(fds)
        self._unsent.clear()
        self._closed(self)

    def _flush(self) -> None:
        while self._unsent:
            message, fds = self._unsent[0]
            try:
                protocol.send(self.sock, message, fds)
            except BlockingIOError:
                self._loop.change(self.sock.fileno(), READ | WRITE)
                return
            except (OSError, protocol.ProtocolError):
                self.close()
                return
            protocol.close_all(fds)
            self._unsent.popleft()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._loop.change(self.sock.fileno(), READ)
            self._flush()
        if events & (READ | GONE) and self.sock.fileno() >= 0:
            try:
                got = protocol.receive(self.sock)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError):
                got = None
            if got is None:
                self.close()
            else:
                self._dispatch(self, *got)
