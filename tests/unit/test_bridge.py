"""A channel bridged to a socket: bytes both ways, ends that follow each other, no hanging."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyvz.migration.bridge import Bridge
from pyvz.migration.wire import WINDOW, Wire


class Ends(tuple[socket.socket, socket.socket, Bridge, Bridge]):
    """Both programs' sockets, and the bridges between them."""


@pytest.fixture
def ends() -> Iterator[Ends]:
    a, b = socket.socketpair()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(fd, fd)) for fd in (a.detach(), b.detach())]
        socks, bridges = [], []
        for wire in wires:
            program, ours = socket.socketpair()
            program.settimeout(120)
            stack.callback(program.close)
            socks.append(program)
            bridges.append(stack.enter_context(Bridge(wire.channel(1), ours)))
        yield Ends((*socks, *bridges))


def taken(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data


def test_both_ways_and_more_than_a_window(ends: Ends) -> None:
    left, right, *_ = ends
    data = os.urandom(2 * WINDOW)
    sender = threading.Thread(target=left.sendall, args=(data,))
    sender.start()
    assert taken(right, len(data)) == data
    sender.join()
    right.sendall(b"answer")
    assert taken(left, 6) == b"answer"


def test_an_end_is_heard_on_the_other_side(ends: Ends) -> None:
    left, right, *_ = ends
    left.sendall(b"last")
    left.shutdown(socket.SHUT_WR)
    assert taken(right, 4) == b"last"
    assert right.recv(1) == b""
    right.sendall(b"still")  # the other direction goes on
    assert taken(left, 5) == b"still"


def test_a_bridge_that_is_closed_ends_both_programs(ends: Ends) -> None:
    left, right, one, other = ends
    stuffed = threading.Thread(target=_stuff, args=(left,), daemon=True)
    stuffed.start()  # nobody reads: it waits for room
    one.close()
    stuffed.join(60)
    assert not stuffed.is_alive()
    other.close()
    with contextlib.suppress(ConnectionResetError):
        while right.recv(1 << 20):
            pass


def _stuff(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(bytes(1 << 20))
    except OSError:
        pass
