"""Whatever dies in a live migration, and whenever: there is one copy, it goes on, nothing is left.

The short suite kills at every phase once or twice; with --all every fault meets every phase twice,
and moments by chance.  PYVZ_SWEEP=2/4 runs the second of four portions of the latter, PYVZ_SEED
repeats the chances of a run (which prints its seed).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pyvz.container.client import KeeperClient
from realnode import at_work
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
CHANCES = 4  # moments by chance for each fault
USUAL = 5.0  # seconds that a migration of this container takes, about
SETTLED = 200.0  # seconds until everything is decided and repaired


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
    ("kill_source_vzd", "Preparing"),
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
@pytest.mark.timeout(3 * 3600)
def test_long_sweep(two_nodes: TwoNodes) -> None:
    seed = int(os.environ.get("PYVZ_SEED") or time.time())
    part, _, parts = os.environ.get("PYVZ_SWEEP", "1/1").partition("/")
    print(f"PYVZ_SEED={seed} PYVZ_SWEEP={part}/{parts}", flush=True)
    sweep(two_nodes, long_plan(random.Random(seed))[int(part) - 1 :: int(parts)])


def long_plan(chance: random.Random) -> list[tuple[str, str]]:
    """Every fault at every stage twice, and at moments by chance; in an order by chance."""
    plan = [(fault, stage) for fault in FAULTS for stage in STAGES] * 2
    plan += [(fault, f"{chance.random():.3f}") for fault in FAULTS for _ in range(CHANCES)]
    chance.shuffle(plan)
    return plan


def sweep(world: TwoNodes, plan: Sequence[tuple[str, str]]) -> None:
    """Run every fault; the container stays wherever it comes to be."""
    world.lan_networks()
    here, there = world.a, world.b
    here.create_busy(NAME, ADDRESS)
    for name, stage in plan:
        try:
            here, there = strike(here, there, name, stage)
        except (AssertionError, OSError, ValueError, IndexError) as error:
            raise AssertionError(f"{name} at {stage}: {error}") from error


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
    wait_for(lambda: now.counter(NAME) > after)
    for side in (here, there):
        deadline = time.monotonic() + 120.0
        while found := side.leftovers():
            assert time.monotonic() < deadline, f"left behind at {side.name}: {found}"
            time.sleep(0.1)
    where = "moved" if now is there else "stayed"
    late = "" if struck else " (late)"
    print(f"{name} at {stage}: {where}, {time.monotonic() - began:.1f} s{late}", flush=True)
    return now, other


def _migrate(fault: Fault, strike_: Callable[[Fault], None], stage: str) -> bool:
    """Migrate, and strike at a stage, or after a fraction of the time that a migration takes."""
    world, target = fault.world, fault.there.name
    process = fault.here.popen(
        "vzmigrate", f"--ssh=-F {world.ssh_config}", "--json", "--online", "-t", "6", target, NAME
    )
    fault.client = process.pid
    struck = threading.Event()

    def act() -> None:
        if not struck.is_set():
            struck.set()
            with contextlib.suppress(ProcessLookupError):
                strike_(fault)
            if strike_ is FAULTS["cut_network"]:
                time.sleep(1.0)

    timer = threading.Timer(float(stage) * USUAL, act) if stage[0].isdigit() else None
    assert process.stdout is not None
    with process:
        if timer is not None:
            timer.start()
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                told = json.loads(line).get("progress") or {}
                if timer is None and str(told.get("stage", "")).startswith(stage):
                    act()
        if timer is not None:
            timer.cancel()
            timer.join()
    return struck.is_set()


def _settled(here: Side, there: Side) -> tuple[Side, Side]:
    """Wait until exactly one side has it; start it where it does not run."""
    deadline = time.monotonic() + SETTLED
    states, quiet = ("", ""), False
    while time.monotonic() < deadline:
        states = (_state(here), _state(there))
        running = [state == "running" for state in states]
        # It may have gone from here to there between the two questions.
        assert not all(running) or _state(here) != "running", "both run it"
        if sorted(bool(state) for state in states) == [False, True]:
            now, other = (here, there) if states[0] else (there, here)
            if any(running) and quiet:
                return now, other
            if states[0] in {"stopped", "suspended"} or states[1] in {"stopped", "suspended"}:
                now.prlctl("start", NAME, code=None)
        quiet = not (at_work(here.root) or at_work(there.root))  # and of then is what is seen next
        if not quiet:
            time.sleep(0.3)
    raise AssertionError(f"not settled: {states}, {here.journals()}, {there.journals()}")


def _state(side: Side) -> str:
    with contextlib.suppress(AssertionError):  # vzd has just been killed
        return side.state(NAME)
    return side.state(NAME)
