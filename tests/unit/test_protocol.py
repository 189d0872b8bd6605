"""The keeper's wire: what is sent arrives, garbage is refused, no descriptor leaks."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvz.container import protocol
from pyvz.container.protocol import ProtocolError

Pair = tuple[socket.socket, socket.socket]
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=12)


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    two.settimeout(60)
    with one, two:
        yield one, two


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != "memfd"), VALUES, max_size=5))
def test_round_trip(pair: Pair, message: dict[str, object]) -> None:
    protocol.send(pair[0], message)
    assert protocol.receive(pair[1]) == (message, [])


def test_descriptors_travel_close_on_exec(pair: Pair) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    protocol.send(pair[0], {"a": 1}, fds)
    got = protocol.receive(pair[1])
    assert got is not None
    assert got[0] == {"a": 1}
    assert len(got[1]) == 5
    assert not any(os.get_inheritable(fd) for fd in got[1])
    protocol.close_all([*fds, *got[1]])


@pytest.mark.parametrize("size", [100, 32 * 1024 - 8, 32 * 1024 - 7, 40_000, 1_000_000])
def test_long_messages_and_their_descriptors(pair: Pair, size: int) -> None:
    before = descriptors()
    message = {"a": "x" * size}
    fd = os.open("/dev/null", os.O_RDONLY)
    protocol.send(pair[0], message, [fd])
    got = protocol.receive(pair[1])
    assert got is not None
    assert got[0] == message
    assert len(got[1]) == 1
    protocol.close_all([fd, *got[1]])
    assert descriptors() == before


def test_too_much(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="too large"):
        protocol.send(pair[0], {"a": "x" * protocol.MESSAGE_LIMIT})
    with pytest.raises(ProtocolError, match="too many"):
        protocol.send(pair[0], {}, [0] * (protocol.FD_LIMIT + 1))


@pytest.mark.parametrize(
    "packet",
    [
        b"{",
        b"[]",
        b"1",
        b"\xff\xfe",
        b'{"memfd":5}',
        b'{"memfd":"x"}',
        b"[" * 30000,
        b'{"a":"' + b"x" * 40000 + b'"}',
    ],
)
def test_garbage(pair: Pair, packet: bytes) -> None:
    before = descriptors()
    fds = [os.open("/dev/null", os.O_RDONLY)] if b"memfd" not in packet else []
    socket.send_fds(pair[0], [packet], fds)
    protocol.close_all(fds)
    with pytest.raises(ProtocolError):
        protocol.receive(pair[1])
    assert descriptors() == before


@pytest.mark.parametrize("size", [0, -1, 10, 1 << 30])
def test_memfd_that_lies(pair: Pair, size: int) -> None:
    before = descriptors()
    memfd = os.memfd_create("test")
    os.write(memfd, b'{"a":1}')
    socket.send_fds(pair[0], [json.dumps({"memfd": size}).encode()], [memfd])
    os.close(memfd)
    with pytest.raises(ProtocolError):
        protocol.receive(pair[1])
    assert descriptors() == before


def test_end_of_stream(pair: Pair) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) is None
