"""How many clients there may be, and calls of one: the next is told so, and no other is hurt."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from pyvz.gateway.connection import CALLS
from pyvz.gateway.server import CLIENTS
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh")

REMOTE, VERSION, CALL, OK = 0x20008086, 1, 0, 0
OPEN, CAPABILITIES, LIBRARY = 1, 7, 157


def call(procedure: int, serial: int, payload: bytes = b"") -> bytes:
    length = 28 + len(payload)
    return struct.pack(">7I", length, REMOTE, VERSION, procedure, CALL, serial, OK) + payload


def connected(world: World) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(120)
    sock.connect(os.fspath(world.root / "run/libvirt/virtvzd-sock"))
    return sock


def answer(sock: socket.socket) -> tuple[int, int]:
    """Return serial and status of the next frame; (0, 0) when the other side has closed."""
    head = b""
    while len(head) < 28:
        got = sock.recv(28 - len(head))
        if not got:
            return 0, 0
        head += got
    length, _, _, _, _, serial, status = struct.unpack(">7I", head)
    left = length - 28
    while left:
        left -= len(sock.recv(min(left, 1 << 16)))
    return serial, status


def opened(world: World) -> socket.socket:
    sock = connected(world)
    sock.sendall(call(OPEN, 1, struct.pack(">II", 0, 0)))  # no name, no flags
    assert answer(sock) == (1, 0)
    return sock


def test_more_clients_than_there_is_room_for(world: World) -> None:
    world.run("prlctl", "list", "-a")
    with ExitStack() as stack:
        first = stack.enter_context(opened(world))
        for _ in range(CLIENTS - 1):
            stack.enter_context(opened(world))
        late = stack.enter_context(connected(world))
        assert answer(late) == (0, 0)
        first.sendall(call(LIBRARY, 2))
        assert answer(first) == (2, 0)
    virsh, deadline = Virsh(world), time.monotonic() + 120
    while True:  # their places are free when their ends were seen
        try:
            virsh("version")
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            break


def test_more_calls_than_one_client_may_have(world: World) -> None:
    """Each is answered once; those above the limit with an error, and then all is as before."""
    world.run("prlctl", "list", "-a")
    with opened(world) as sock:
        many = range(10, 10 + 4 * CALLS)
        sock.sendall(b"".join(call(CAPABILITIES, serial) for serial in many))
        answers = dict(answer(sock) for _ in many)
        assert set(answers) == set(many)
        assert sum(status == OK for status in answers.values()) >= CALLS
        assert any(status != OK for status in answers.values())
        sock.sendall(call(CAPABILITIES, 5))
        assert answer(sock) == (5, 0)
