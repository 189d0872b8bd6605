"""Pages of memory over a channel: CRIU's page requests one way, pages the other (post-copy).

    request   cmd(4) 0(4) pages(8) address(8) process(8), little-endian: CRIU, criu/page-xfer.c
    answer    the same, then the pages

The giving CRIU takes the end of its socket for success, and then kills what it holds.  So it is
never let: the first byte of the next request is always there already, and the end of the socket
(ours, or that of a vzd that was killed) leaves half a request: it fails, and lets the processes
go, into their frozen cgroup, where they are ours.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

from pyvz.errors import MigrationError
from pyvz.migration import wire
from pyvz.migration.wire import Channel, Reader

log = logging.getLogger(__name__)

_REQUEST: Final = 32
_GET: Final = bytes([7])  # PS_IOV_GET
_ENDED: Final = struct.pack("<i", 0)  # the answer to PS_IOV_CLOSE
_PIECE: Final = 1 << 20
_TIMEOUT: Final = 7 * 86400.0  # a dead connection is seen at once


class PageLine:
    """One end.  theirs: the socket that CRIU is given; ours is its other end.

    moved: is called with the number of bytes that came from CRIU so far.
    """

    def __init__(
        self, channel: Channel, *, serving: bool, moved: Callable[[int], None] = lambda _: None
    ) -> None:
        self._channel = channel
        self.ours, self.theirs = wire.pair()
        self._moved = moved
        self._threads = [
            threading.Thread(target=self._guarded, args=(each,), name=name, daemon=True)
            for name, each in (
                ("pages-in", self._serve if serving else self._carry_in),
                ("pages-out", self._carry_out),
            )
        ]
        self.broken = threading.Event()  # it has ended, for whatever reason

    def start(self) -> None:
        """Begin to carry."""
        for thread in self._threads:
            thread.start()

    def given(self) -> None:
        """CRIU has its end, and alone: when it dies, that is noticed."""
        self.theirs.close()

    def close(self) -> None:
        """End it; CRIU, if it still is at work, fails.  Idempotent."""
        self._channel.abandon()
        for each in (self.ours, self.theirs):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(10.0)
        self.ours.close()
        self.theirs.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (MigrationError, OSError) as error:
            log.info("pages: %s", error)
        self.broken.set()

    def _serve(self) -> None:
        """Pass requests on until the other side has everything."""
        reader = Reader(self._channel, _TIMEOUT)
        self.ours.sendall(_GET)
        while (request := reader.exactly(_REQUEST))[:1] == _GET:
            self.ours.sendall(request[1:] + _GET)
        self._channel.write(_ENDED)

    def _carry_in(self) -> None:
        while data := self._channel.read(_TIMEOUT):
            self.ours.sendall(data)

    def _carry_out(self) -> None:
        total = 0
        while data := self.ours.recv(_PIECE):
            self._channel.write(data)
            total += len(data)
            self._moved(total)
        self._channel.end()
