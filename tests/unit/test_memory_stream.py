"""What the memory of a container travels in."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvz.errors import Cancelled, ProtocolError
from pyvz.migration import files, wire
from pyvz.migration.timeline import Timeline
from pyvz.model.task import NoProgress
from pyvz.operations.sideline import Sideline


@pytest.fixture
def wires() -> Iterator[tuple[wire.Wire, wire.Wire]]:
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(wire.Wire(fd, fd, silence=60.0))
            for fd in (each.detach() for each in wire.pair())
        )
        yield one, other


def test_files_travel_in_pieces_that_mix(
    wires: tuple[wire.Wire, wire.Wire], tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "inventory.img").write_bytes(b"inventory")
    (here / "nothing.img").write_bytes(b"")
    (here / "core-1.img").write_bytes(os.urandom(3 << 20))
    (here / "lazy.socket").symlink_to("/etc/passwd")
    taker = threading.Thread(target=files.receive, args=(wires[1].channel(1), there, 10.0))
    taker.start()
    sender = files.Sender(wires[0].channel(1), NoProgress(), 1 << 20)
    big = os.urandom(200_000)
    for start in range(0, len(big), 50_000):
        sender.piece("pages-1.img", start, big[start : start + 50_000])
        sender.piece("pages-2.img", start, big[start : start + 50_000])
    sender.piece("pages-1.img", len(big), bytes(1 << 20))
    sender.rest(here)
    taker.join(60)
    assert (there / "pages-1.img").read_bytes() == big + bytes(1 << 20)
    assert (there / "pages-2.img").read_bytes() == big
    for name in ("inventory.img", "nothing.img", "core-1.img"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    assert not (there / "lazy.socket").exists()
    assert sender.total == 2 * len(big) + (1 << 20) + (3 << 20) + len(b"inventory")


@pytest.mark.parametrize("name", [b"../evil", b".hidden", b"a/b", b""])
def test_names_lead_nowhere(
    wires: tuple[wire.Wire, wire.Wire], tmp_path: Path, name: bytes
) -> None:
    head = b"\x01" + len(name).to_bytes(2, "big") + (4).to_bytes(8, "big")
    wires[0].channel(1).write(head + name + b"data")
    with pytest.raises(ProtocolError):
        files.receive(wires[1].channel(1), tmp_path, 10.0)


def test_a_pair_holds_much() -> None:
    for each in wire.pair():
        with each:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 200_000


def test_a_timeline_tells_of_each_stage() -> None:
    line = Timeline(NoProgress())
    line.stage("one")
    line.stage("two")
    line.advance(1, 2)
    line.check()
    assert [stage for stage, _ in line.phases()] == ["one", "two"]
    assert all(seconds >= 0 for _, seconds in line.phases())


def test_a_sideline_gives_its_result_or_error_and_can_be_called_off() -> None:
    good: Sideline[int] = Sideline("good", lambda _: 7, NoProgress())
    good.start()
    assert good.result(lambda: None, 60.0) == 7

    def fail(_: Sideline[int]) -> int:
        raise ProtocolError("no")

    bad = Sideline("bad", fail, NoProgress())
    bad.start()
    with pytest.raises(ProtocolError):
        bad.result(lambda: None, 60.0)

    def forever(line: Sideline[int]) -> int:
        while True:
            line.check()
            time.sleep(0.01)

    endless = Sideline("endless", forever, NoProgress())
    endless.call_off()  # never begun: fine
    endless = Sideline("endless", forever, NoProgress())
    endless.start()
    endless.call_off()
    with pytest.raises(Cancelled):
        endless.result(lambda: None, 60.0)
