"""Migration without any node: addresses, messages, wire, blocks, stop rule, decision."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pyvz.errors import (
    BadValue,
    ConnectionBroken,
    Locked,
    MigrationError,
    ProtocolError,
    Timeout,
    Unsupported,
)
from pyvz.migration import address, blocks, decision, iterate, messages, offer, wire
from pyvz.migration.address import Address
from pyvz.migration.dial import Peer
from pyvz.migration.pace import Pace
from pyvz.model.task import NoProgress
from pyvz.store.paths import Paths

IDENT = "0c0ffee0-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("node2", Address("node2")),
        ("root@node2.example.org:2222", Address("node2.example.org", "root", 2222)),
        ("10.0.0.1", Address("10.0.0.1")),
        ("fd00::1", Address("fd00::1")),
        ("[fd00::1]:22", Address("fd00::1", None, 22)),
        ("admin@[fe80::1%eth0]", Address("fe80::1%eth0", "admin")),
        ("root:@node2", Address("node2", "root")),
    ],
)
def test_addresses(text: str, wanted: Address) -> None:
    assert address.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "root@-x",
        "a b",
        "node;rm",
        "node:0",
        "node:x",
        "-l@node",
        "$(x)",
        "a/b",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadValue):
        address.parse(text)


def test_a_password_is_refused() -> None:
    with pytest.raises(Unsupported, match="password"):
        address.parse("root:secret@node")


def test_the_command_has_the_users_options_first_and_the_host_behind_a_stop() -> None:
    argv = address.ssh(Address("n", "root", 2222), address.ssh_options("-F /x -i 'a b'"))
    assert argv[:5] == ["ssh", "-F", "/x", "-i", "a b"]
    assert argv[-3:] == ["--", "n", "vzmdest"]
    assert argv[argv.index("-p") + 1] == "2222"
    assert "BatchMode=yes" in argv
    for wrong in ("'", "host"):
        with pytest.raises(BadValue):
            address.ssh_options(wrong)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"is":"eval"}', b'{"is":"outcome"}', b'{"is":"outcome","id":1}', b"\xff",
     b'{"is":"commit","start":1}', b"[" * 100000, b'{"is":["check"]}'],
)  # fmt: skip
def test_messages_that_violate(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.parse(data)


def test_an_error_travels_with_its_class() -> None:
    sent = messages.failed(Locked("busy", details="d", hint="h"))
    found = messages.error_of(messages.parse(json.dumps(sent).encode()), "node2")
    assert (type(found), found.message, found.details) == (Locked, "node2: busy", "d")
    odd = {**sent, "error": "Exception"}
    assert type(messages.error_of(odd, "n")).__name__ == "VZError"


def test_the_stop_rule() -> None:
    assert iterate.goes_on([])
    assert iterate.goes_on([1000])
    assert not iterate.goes_on([64])
    assert iterate.goes_on([1000, 1100])
    assert not iterate.goes_on([1000, 1101])
    assert iterate.goes_on([1000, 800], growth=iterate.DISK_GROWTH)
    assert not iterate.goes_on([1000, 801], growth=iterate.DISK_GROWTH)
    assert not iterate.goes_on([1000 - number for number in range(8)])


def test_who_decides_first_has_decided(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    decision.take(paths, IDENT)
    assert decision.ask(paths, IDENT) == decision.TAKEN
    decision.forget(paths, IDENT)
    assert decision.known(paths, IDENT) is None
    assert decision.ask(paths, IDENT) == decision.REFUSED
    with pytest.raises(MigrationError):
        decision.take(paths, IDENT)
    assert [each.name for each in (paths.lib / "migration").iterdir()] == [IDENT]
    with pytest.raises(ProtocolError):
        decision.ask(paths, "../../../etc/passwd")


@pytest.fixture
def pair() -> Iterator[tuple[wire.Wire, wire.Wire]]:
    one, other = socket.socketpair()
    with ExitStack() as stack:
        ends = [each.detach() for each in (one, other)]
        yield tuple(  # type: ignore[misc]
            stack.enter_context(wire.Wire(fd, fd, silence=60.0)) for fd in ends
        )


def test_messages_and_data_pass(pair: tuple[wire.Wire, wire.Wire]) -> None:
    here, there = pair
    here.send(messages.make("bye"))
    assert there.receive(60.0) == {"is": "bye"}
    here.pace.sent(1 << 30, 1000.0)  # as on a slow network
    data = os.urandom(3 << 20) + bytes(30 << 20)
    sender = threading.Thread(target=_send, args=(here.channel(7), data))
    sender.start()
    found = bytearray()
    while piece := there.channel(7).read(60.0):
        found += piece
    sender.join()
    assert bytes(found) == data
    assert here.sent < 12 << 20  # the zeros shrink, the noise does not


def test_the_answer_to_a_question_that_nobody_waits_for_is_none_to_the_next(
    pair: tuple[wire.Wire, wire.Wire],
) -> None:
    """Above all `outcome` after a `commit` whose answer came too late."""
    here, there = pair
    peer = Peer(here, Address("n"), {"host": "n", "node": "x"})
    with pytest.raises(Timeout):
        peer.call("commit", start=True, timeout=0.1)
    peer.ask("restore")
    for late in (messages.make("done", result={"started": True}), messages.failed(Locked("busy"))):
        there.send(late)
    there.send(messages.make("done", result={"outcome": "taken"}))
    assert peer.call("outcome", id=IDENT, timeout=60.0) == {"outcome": "taken"}
    there.send(messages.failed(Locked("busy")))
    with pytest.raises(Locked, match="n: busy"):
        peer.call("abort", timeout=60.0)
    assert [there.receive(60.0)["is"] for _ in range(4)] == [
        *("commit", "restore", "outcome", "abort"),
    ]


def _send(channel: wire.Channel, data: bytes) -> None:
    channel.write(data)
    channel.end()


def test_a_reader_that_waits_holds_the_writer_up_but_no_message(
    pair: tuple[wire.Wire, wire.Wire],
) -> None:
    here, there = pair
    sender = threading.Thread(target=_send, args=(here.channel(1), os.urandom(wire.WINDOW * 2)))
    sender.start()
    time.sleep(0.3)
    here.send(messages.make("bye"))
    assert there.receive(60.0)["is"] == "bye"
    assert here.channel(1).sent <= wire.WINDOW
    while there.channel(1).read(60.0):
        pass
    sender.join()


def test_what_is_refused_is_not_sent(pair: tuple[wire.Wire, wire.Wire]) -> None:
    here, there = pair
    there.channel(1).refuse()
    with pytest.raises(wire.Refused):
        here.channel(1).write(bytes(1 << 30))


def test_a_deadline_and_an_end(pair: tuple[wire.Wire, wire.Wire]) -> None:
    here, there = pair
    with pytest.raises(Timeout):
        here.receive(0.1)
    there.close()
    with pytest.raises(ConnectionBroken):
        here.receive(60.0)
    with pytest.raises(MigrationError):
        here.send(messages.make("bye"))


def test_silence_is_an_end() -> None:
    one, other = socket.socketpair()
    with (
        other,
        wire.Wire(fd := one.detach(), fd, silence=1.0) as here,
        pytest.raises(ConnectionBroken, match="silent"),
    ):
        here.receive(30.0)


@pytest.mark.parametrize(
    "data",
    [
        b"Last login: yesterday\n" * 5000,
        wire.GREETING + b"\x01\0\0\0\xff\xff\xff\xff",
        wire.GREETING + b"\x02\0\0\x01\xff\xff\xff\xff",
        wire.GREETING + b"\x02\x01\0\x01\0\0\0\x04junk",
        wire.GREETING + b"\x09\0\0\0\0\0\0\0",
        wire.GREETING + b"\x01\0\0\0\0\0\0\x02[]",
        wire.GREETING + b"\x04\0\0\x01\0\0\0\x04\xff\xff\xff\xff",
        wire.GREETING + b"\x02\0\xff\xff\0\0\0\x01x",
    ],
)
def test_garbage_ends_the_connection(data: bytes) -> None:
    one, other = socket.socketpair()
    with other, wire.Wire(fd := one.detach(), fd, silence=60.0) as here:
        writer = threading.Thread(target=_quietly, args=(other, data))
        writer.start()
        with pytest.raises(ProtocolError):
            here.receive(60.0)
        here.close()
        writer.join()


def _quietly(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


def test_chatter_before_the_greeting_is_skipped() -> None:
    one, other = socket.socketpair()
    with other, wire.Wire(fd := one.detach(), fd, silence=60.0) as here:
        message = b'{"is":"bye"}'
        head = b"\x01\0\0\0" + len(message).to_bytes(4, "big")
        other.sendall(b"Welcome!\n" + wire.GREETING + head + message)
        assert here.receive(60.0)["is"] == "bye"


def test_blocks_by_comparison(pair: tuple[wire.Wire, wire.Wire], tmp_path: Path) -> None:
    here, there = pair
    size = 5 << 20
    old, new, out = (tmp_path / name for name in ("old", "new", "out"))
    old.write_bytes(os.urandom(1 << 20))
    os.truncate(old, size)
    data = bytearray(old.read_bytes())
    data[: 1 << 20] = bytes(1 << 20)
    data[4 << 20 : (4 << 20) + 3] = b"new"
    new.write_bytes(data)
    out.write_bytes(b"H" * 4096)
    os.truncate(out, 4096 + size)
    fd = os.open(out, os.O_RDWR)
    rounds: list[int] = []
    taker = threading.Thread(
        target=lambda: rounds.extend(blocks.receive(there.channel(1), fd, 4096, size, 60.0))
    )
    taker.start()
    sender = blocks.Sender(here.channel(1))
    with blocks.opened(old, 0, size) as first, blocks.opened(new, 0, size) as second:
        sender.send(first, None, NoProgress())
        sender.send(second, first, NoProgress())
        sender.finish(size)
    taker.join()
    os.close(fd)
    assert rounds == [0, 1]
    assert out.read_bytes() == b"H" * 4096 + bytes(data)


@pytest.mark.parametrize(
    "record",
    [
        b"\x01" + (1 << 40).to_bytes(8, "big") + (4).to_bytes(4, "big") + b"evil",
        b"\x01" + (0).to_bytes(8, "big") + (1 << 30).to_bytes(4, "big"),
        b"\x02" + (0).to_bytes(8, "big") + (1 << 50).to_bytes(8, "big"),
        b"\x04" + (1 << 50).to_bytes(8, "big"),
        b"\x07",
    ],
)
def test_blocks_outside_of_the_disk(
    record: bytes, pair: tuple[wire.Wire, wire.Wire], tmp_path: Path
) -> None:
    here, there = pair
    out = tmp_path / "out"
    out.write_bytes(bytes(4096))
    fd = os.open(out, os.O_RDWR)
    _send(here.channel(1), record)
    with pytest.raises(ProtocolError):
        list(blocks.receive(there.channel(1), fd, 0, 4096, 60.0))
    os.close(fd)
    assert out.read_bytes() == bytes(4096)


def test_offers_are_checked() -> None:
    good = {
        "uuid": IDENT, "envid": IDENT, "name": "web", "conf": "", "memory": 0, "running": False,
        "live": False, "machine": "x86_64", "kernel": "6", "cpu": [], "driver": "simfs",
        "disks": [{"name": "root.hdd", "form": "tree", "driver": "simfs", "size": None, "used": 1}],
        "place": "/vz/private/x", "token": "", "private": None, "shared": None, "ignore": [],
        "copy": False, "checkpoint": {},
    }  # fmt: skip
    assert offer.parse(good).disks[0].form == "tree"
    assert offer.parse(json.loads(json.dumps(offer.parse(good).to_json()))) == offer.parse(good)
    bad_disks = [
        {**good["disks"][0], **change}  # type: ignore[index, dict-item]
        for change in ({"name": "../x"}, {"name": ".owner"}, {"form": "x"}, {"size": -1})
    ]
    changes: list[dict[str, object]] = [{"disks": [each]} for each in bad_disks]
    changes += [{"uuid": "../x"}, {"uuid": IDENT.upper()}, {"disks": [1]}, {"cpu": {}}]
    for change in changes:
        with pytest.raises(ProtocolError):
            offer.parse({**good, **change})
    with pytest.raises(BadValue):
        offer.parse({**good, "name": "-x"})


def test_compressing_pays_on_a_slow_network_only() -> None:
    mib = 1 << 20
    pace = Pace()
    assert pace.pays()  # nothing is known yet
    pace.packed(8 * mib, 2 * mib, 0.04)  # 200 MiB/s, to a quarter
    pace.sent(10 * mib, 0.1)  # 100 MiB/s
    assert pace.pays()
    pace.sent(500 * mib, 0.5)  # 1000 MiB/s
    assert not pace.pays()
    pace.sent(100 * mib, 1.0)
    assert pace.pays()
    pace.packed(500 * mib, 450 * mib, 2.5)
    assert not pace.pays()
