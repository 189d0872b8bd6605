"""Whatever dies in a live migration, and whenever: there is one copy, it goes on, nothing is left.

The short suite kills at every phase once or twice; with --all every fault meets every phase.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvz.container.client import KeeperClient
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "two_nodes"]

pytestmark = pytest.mark.requires("root", "userns", "sshd", "criu")

NAME, ADDRESS = "ct", "10.99.0.50"
STAGES = (
    "Connecting",
    "Checking",
    "Reserving",
    "Copying root.hdd: round 1",
    "Freezing",
    "Copying root.hdd: last",
    "Sending memory",
    "Restoring",
    "Committing",
)
SETTLED = 150.0  # seconds until everything is decided and repaired


class Fault:
    """What is done at a stage, and how it is healed."""

    def __init__(self, here: Side, there: Side) -> None:
        self.here, self.there, self.world = here, there, here.world
        self.client: int = 0

    def kill_client(self) -> None:
        os.kill(self.client, signal.SIGKILL)

    def interrupt_client(self) -> None:
        os.kill(self.client, signal.SIGINT)

    def kill_source_vzd(self) -> None:
        os.kill(self.here.vzd(), signal.SIGKILL)

    def kill_target_vzd(self) -> None:
        os.kill(self.there.vzd(), signal.SIGKILL)

    def kill_source_keeper(self) -> None:
        os.kill(self.here.keeper(), signal.SIGKILL)

    def kill_target_keeper(self) -> None:
        os.kill(self.there.keeper(), signal.SIGKILL)

    def kill_source_criu(self) -> None:
        _kill_criu(self.here)

    def kill_target_criu(self) -> None:
        _kill_criu(self.there)

    def kill_ssh(self) -> None:
        for pid in _children(self.here.vzd(), "ssh"):
            os.kill(pid, signal.SIGKILL)

    def cut_network(self) -> None:
        self.world.cut()

    def heal(self) -> None:
        self.world.cut(cut=False)


FAULTS: dict[str, Callable[[Fault], None]] = {
    name: getattr(Fault, name)
    for name in (
        *("kill_client", "interrupt_client", "kill_source_vzd", "kill_target_vzd"),
        *("kill_ssh", "cut_network", "kill_source_criu", "kill_target_criu"),
        *("kill_source_keeper", "kill_target_keeper"),
    )
}
SHORT = (
    ("interrupt_client", "Copying root.hdd: last"),
    ("kill_source_vzd", "Sending memory"),
    ("kill_source_vzd", "Committing"),
    ("kill_target_vzd", "Restoring"),
    ("kill_target_vzd", "Committing"),
    ("kill_ssh", "Committing"),
    ("cut_network", "Sending memory"),
    ("kill_source_criu", "Sending memory"),
    ("kill_target_criu", "Restoring"),
    ("kill_source_keeper", "Sending memory"),
)


def _kill_criu(side: Side) -> None:
    client = KeeperClient(side.root / "run/pyvz/keeper.sock")
    try:
        for row in client.call("list").data["workers"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(row["pid"]), signal.SIGKILL)
    finally:
        client.close()


def _children(parent: int, name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, rest = path.read_text().rpartition(")")
            if int(rest.split()[1]) == parent and head.endswith(f"({name}"):
                found.append(int(path.parent.name))
    return found


def test_short_sweep(two_nodes: TwoNodes) -> None:
    sweep(two_nodes, SHORT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_long_sweep(two_nodes: TwoNodes) -> None:
    sweep(two_nodes, [(fault, stage) for fault in FAULTS for stage in STAGES] * 2)


def sweep(world: TwoNodes, plan: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> None:
    """Run every fault; the container stays wherever it comes to be."""
    world.lan_networks()
    here, there = world.a, world.b
    here.create_busy(NAME, ADDRESS)
    failures = []
    for name, stage in plan:
        try:
            here, there = strike(here, there, name, stage)
        except (AssertionError, OSError, ValueError, IndexError) as error:
            failures.append(f"{name} at {stage}: {error}")
            break
    assert not failures, "\n".join(failures)


def strike(here: Side, there: Side, name: str, stage: str) -> tuple[Side, Side]:
    """One migration with one fault; returns (where it is, the other side)."""
    before = here.counter(NAME)
    fault = Fault(here, there)
    began = time.monotonic()
    struck = _migrate(fault, FAULTS[name], stage)
    fault.heal()
    sides = _settled(here, there)
    now, other = sides
    after = now.counter(NAME)
    assert after >= before, f"the counter went back from {before} to {after}"
    wait_for(lambda: now.counter(NAME) > after, 60)
    for side in (here, there):
        deadline = time.monotonic() + 60.0
        while found := _leftovers(side):
            assert time.monotonic() < deadline, f"left behind at {side.name}: {found}"
            time.sleep(0.1)
    where = "moved" if now is there else "stayed"
    print(
        f"{name} at {stage}: {where}, {time.monotonic() - began:.1f} s{'' if struck else ' (late)'}"
    )
    return now, other


def _migrate(fault: Fault, strike_: Callable[[Fault], None], stage: str) -> bool:
    world, target = fault.world, fault.there.name
    process = fault.here.popen(
        "vzmigrate", f"--ssh=-F {world.ssh_config}", "--json", "--online", "-t", "6", target, NAME
    )
    fault.client = process.pid
    struck = False
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                told = json.loads(line).get("progress") or {}
                if not struck and str(told.get("stage", "")).startswith(stage):
                    struck = True
                    strike_(fault)
                    if strike_ is FAULTS["cut_network"]:
                        time.sleep(1.0)
    return struck


def _settled(here: Side, there: Side) -> tuple[Side, Side]:
    """Wait until exactly one side has it; start it where it does not run."""
    deadline = time.monotonic() + SETTLED
    states = ("", "")
    while time.monotonic() < deadline:
        states = (_state(here), _state(there))
        running = [state == "running" for state in states]
        assert running != [True, True], "both run it"
        if sorted(bool(state) for state in states) == [False, True]:
            now, other = (here, there) if states[0] else (there, here)
            if any(running) and not _journals(here) and not _journals(there):
                return now, other
            if states[0] in {"stopped", "suspended"} or states[1] in {"stopped", "suspended"}:
                now.prlctl("start", NAME, code=None)
        time.sleep(0.3)
    raise AssertionError(f"not settled: {states}, {_journals(here)}, {_journals(there)}")


def _state(side: Side) -> str:
    with contextlib.suppress(AssertionError):  # vzd has just been killed
        return side.state(NAME)
    return side.state(NAME)


def _journals(side: Side) -> list[str]:
    return [path.read_text()[-300:] for path in (side.root / "var/lib/pyvz/journal").glob("*")]


def _leftovers(side: Side) -> list[str]:
    private = side.root / "vz/private"
    found = [path.name for path in private.glob(".*")] if private.is_dir() else []
    found += [os.fspath(path) for path in (side.root / "run/pyvz/images").glob("*")]
    found += [os.fspath(path) for path in (side.root / "run/pyvz/migrate").glob("*")]
    found += [os.fspath(path) for path in private.glob("*/.migrate*")]
    return found + _journals(side)
