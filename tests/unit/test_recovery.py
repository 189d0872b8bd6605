"""The ends of containers: handled once, not against a stop that does the same work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvz.container.runtime import Exit, ExitReason
from pyvz.daemon import recovery
from pyvz.linux.process import boot_id
from pyvz.model.environment import Kind
from pyvz.model.status import Status
from pyvz.operations import lifecycle
from pyvz.store.lease import Lease
from pyvz.store.paths import Paths
from pyvz.store.state import RunState

UUID = "11111111-2222-3333-4444-555555555555"


class World:
    """A node with one environment whose init has ended."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(root)
        self.callbacks: list[Callable[[Exit], None]] = []
        self.exited: list[str] = []
        node: Any = SimpleNamespace(
            paths=self.paths,
            runtime=SimpleNamespace(running=lambda _uuid=None: {}, on_exit=self.callbacks.append),
            registry=SimpleNamespace(
                environments=lambda: [SimpleNamespace(uuid=UUID, kind=Kind.CT)]
            ),
        )
        monkeypatch.setattr(lifecycle, "exited", lambda _, end: self.exited.append(end.uuid))
        self.exits = recovery.Exits(node)
        self.exits.watch()

    def runs(self, boot: str) -> None:
        RunState(boot, 77, 1, Status.RUNNING, 0.0, {}).save(self.paths, UUID)

    def end(self, uuid: str = UUID, pid: int = 77) -> None:
        self.callbacks[0](Exit(uuid, pid, ExitReason.REBOOT, 1))

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self.exited and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path, monkeypatch)
    yield world
    world.exits.close()


def test_end_is_handled(world: World) -> None:
    world.runs(boot_id())
    world.end()
    world.wait()
    assert world.exited == [UUID]


def test_end_of_an_unknown_container_is_handled_too(world: World) -> None:
    world.end("unknown")
    world.wait()
    assert world.exited == ["unknown"]


def test_a_stop_that_cleans_up_itself_is_left_alone(world: World) -> None:
    world.runs(boot_id())
    with Lease.take(world.paths, UUID, "stop"):
        world.end()
        time.sleep(0.1)
        RunState.clear(world.paths, UUID)
    # The next command finds the lease free at once, again and again.
    for _ in range(20):
        with Lease.take(world.paths, UUID, "delete", timeout=0.0):
            time.sleep(0.005)
    assert world.exited == []


def test_repair_waits_for_the_ends_that_must_come(world: World) -> None:
    world.runs(boot_id())
    threading.Timer(0.2, world.end).start()
    world.exits.settle(60)
    assert world.exited == [UUID]


def test_repair_does_not_wait_for_what_ended_with_the_machine(world: World) -> None:
    world.runs("another boot")
    began = time.monotonic()
    world.exits.settle(60)
    assert time.monotonic() - began < 30


def test_repair_does_not_wait_for_ever(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.runs(boot_id())
    world.exits.settle(0.1)
    assert "nobody knows how" in caplog.text
