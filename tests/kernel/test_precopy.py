"""Memory in rounds while the container runs (pre-copy), without a second node; see precopy.py."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Engine, engine, hold, wait_for
from pyvz.container import criuimages
from pyvz.container.checkpoint import Checkpoint, DumpHooks, RestoreHooks
from pyvz.container.criurequest import DumpRequest
from pyvz.container.frame import Frame
from pyvz.migration import files, wire
from pyvz.model.task import NoProgress
from pyvz.operations import livedump, precopy
from pyvz.operations.memoryrounds import Rounds
from pyvz.operations.precopy import Precopy

__all__ = ["engine"]
pytestmark = pytest.mark.requires("criu", "userns", "mem_track")

SIZE = 16 << 20
HOLD = hold(SIZE)


class There:
    """The other node, as precopy.py sees it."""

    def __init__(self, wires: tuple[wire.Wire, wire.Wire], rounds: Rounds) -> None:
        self._wires, self.rounds = wires, rounds
        self._channels = 0

    def new_channel(self) -> wire.Channel:
        self._channels += 1
        return self._wires[0].channel(self._channels)

    def call(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert kind == "memory"
        self.rounds.begin(fields["round"], self._wires[1].channel(fields["channel"]))
        return {}

    def take(self, images: Path) -> Path:
        """Receive what the dump has left in a directory; returns where that is."""
        target = self.rounds.end()
        channel = self.new_channel()
        files.Sender(channel, NoProgress(), 0).rest(images)
        files.receive(self._wires[1].channel(channel.number), target, 60.0)
        return target


@pytest.fixture
def wires() -> Iterator[tuple[wire.Wire, wire.Wire]]:
    with ExitStack() as stack:
        ends = [each.detach() for each in wire.pair()]
        one, other = (stack.enter_context(wire.Wire(fd, fd, silence=120.0)) for fd in ends)
        yield one, other


def test_each_page_comes_from_the_round_that_had_it_last(
    engine: Engine, wires: tuple[wire.Wire, wire.Wire]
) -> None:
    made = Checkpoint(engine.runtime, engine.keeper, engine.paths)
    spec = engine.spec()._replace(argv=("/bin/sh", "-c", HOLD))
    other = spec._replace(uuid=str(uuid.uuid4()))
    node: Any = SimpleNamespace(checkpoint=made, paths=engine.paths)
    env: Any = SimpleNamespace(uuid=spec.uuid, home=engine.paths.root / "home")
    assert precopy.reason_against(node, {"memory_rounds": True}) == ""
    there = There(wires, Rounds(node, env, SIZE))
    peer: Any = there
    images = engine.paths.root / "leaving"
    livedump.make(images)

    engine.start(spec)
    root = spec.root / "root"
    wait_for((root / "ready").exists, 120)
    wanted = hashlib.md5((root / "data").read_bytes(), usedforsecurity=False).hexdigest()
    rounds = Precopy(node, env, peer, NoProgress())
    frame = made.frame(spec)
    parent = rounds.run(images, frame, SIZE)
    assert parent == str(len(rounds.pages))
    assert rounds.pages[0] * precopy.PAGE > SIZE
    assert rounds.pages[1] < rounds.pages[0] / 4
    assert sum(path.stat().st_size for path in images.glob("*/pages-*.img")) == 0

    def frozen() -> bool:
        engine.cgroups.freeze(spec.uuid)
        there.take(images)
        return True

    with made.worker(spec.uuid, images) as worker:
        request = DumpRequest(frame, track_mem=True, parent=parent)
        made.dump(worker, request, DumpHooks(frozen=frozen))
    stats = criuimages.dump_stats(images)
    assert stats is not None
    assert stats.skipped * precopy.PAGE > SIZE
    engine.runtime.kill(spec.uuid)
    engine.runtime.clean(spec.uuid)

    target = there.rounds.images
    saved = Frame.load(target)
    with made.worker(other.uuid, target, root=made.root(other, saved)) as worker:
        made.restore(worker, other, saved, RestoreHooks())
    assert engine.run(other.uuid, "/bin/sh", "-c", "echo > /root/go").code == 0
    wait_for(lambda: (root / "sum").exists() and (root / "sum").read_text() != "", 120)
    assert (root / "sum").read_text().split()[0] == wanted
    there.rounds.cancel()
    livedump.remove(images)
