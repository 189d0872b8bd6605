"""A channel of the wire bridged to a local socket, both ways: what a program that talks to its own
kind over a socket (QEMU: its memory, its disks over NBD) says here is heard there.

The ends follow each other: the end of the socket is told by END, the channel's end shuts the socket
down.  A wire that breaks, or a side that is closed, ends the socket, which the program hears of.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Final

from pyvz.errors import VZError
from pyvz.migration.wire import CHUNK, Channel

_TIMEOUT: Final = 7 * 86400.0  # between two bytes; a dead connection is seen at once
_END: Final = 30.0  # seconds for the threads to end once both sides are closed

log = logging.getLogger(__name__)


class Bridge:
    """Carries bytes until both directions have ended; a context manager, which takes the socket."""

    def __init__(self, channel: Channel, sock: socket.socket) -> None:
        self._channel = channel
        self._socket = sock
        sock.settimeout(None)
        name = f"bridge-{channel.number}"
        self._threads = [
            threading.Thread(target=each, name=f"{name}-{each.__name__}", daemon=True)
            for each in (self._outward, self._inward)
        ]

    def __enter__(self) -> Bridge:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, whatever is under way; idempotent."""
        self._channel.abandon()
        self._channel.refused()  # whoever waits for room waits no more
        self._hang_up()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_END)
        self._socket.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _outward(self) -> None:
        """From the socket to the other node."""
        try:
            while data := self._socket.recv(CHUNK):
                self._channel.write(data)
            self._channel.end()
        except (VZError, OSError) as error:
            log.debug("channel %d: %s", self._channel.number, error)
            self._channel.refuse()
            self._hang_up()

    def _inward(self) -> None:
        """From the other node to the socket."""
        try:
            while data := self._channel.read(_TIMEOUT):
                self._socket.sendall(data)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        except (VZError, OSError) as error:
            log.debug("channel %d: %s", self._channel.number, error)
            self._channel.refuse()
            self._hang_up()
