"""Whatever dies while a virtual machine moves: there is one copy, it goes on, nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_migrate_faults import Fault, _migrate, _settled
from test_migrate_machine import Machine

import bundles
from tinyguest import tiny_iso
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "two_nodes"]

pytestmark = pytest.mark.requires("root", "sshd", "program:qemu-system-x86_64", "program:qemu-img")

NAME = "ct"  # as the container of test_migrate_faults, whose helpers are used
COUNT = """i=0
while :; do i=$((i + 1)); echo $i >/root/new; mv /root/new /root/counter; sleep 0.05; done
"""


def _qemu(side: Side) -> None:
    for path in (side.root / "run/pyvz/vm").glob("*/process.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(json.loads(path.read_text())["pid"]), signal.SIGKILL)


FAULTS: dict[str, Callable[[Fault], None]] = {
    "interrupt_client": Fault.interrupt_client,
    "kill_client": Fault.kill_client,
    "kill_source_vzd": Fault.kill_source_vzd,
    "kill_target_vzd": Fault.kill_target_vzd,
    "kill_ssh": Fault.kill_ssh,
    "kill_target_qemu": lambda fault: _qemu(fault.there),
}
DECIDED = "Committing"  # whoever kills QEMU from here on kills the only copy
SHORT = (
    ("interrupt_client", "Sending memory"),
    ("kill_target_vzd", "Copying disks"),
    ("kill_source_vzd", "Switching over"),
    *((fault, DECIDED) for fault in ("kill_source_vzd", "kill_target_vzd", "kill_ssh")),
)
STAGES = ("Reserving", "Preparing", "Copying disks", "Sending memory", "Switching over")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_short_sweep(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    sweep(Machine(two_nodes, tiny_iso, NAME), SHORT)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_bundle(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A ploop disk that is written to all the while: nothing is lost, nothing is left."""
    machine = Machine(two_nodes, tiny_iso, NAME)
    disk = machine.take_a_bundle()
    plan = [(fault, "Copying disks") for fault in FAULTS]
    plan += [("kill_target_vzd", "Preparing"), *SHORT]
    sweep(machine, plan, busy=True)
    machine.whole()
    here, there = machine.at, machine.other
    assert _migrate(Fault(here, there), lambda fault: _qemu(fault.here), "Copying disks")
    wait_for(lambda: here.state(NAME) == "stopped", 120)
    for side in (here, there):
        wait_for(lambda side=side: not _left(side), 60)  # type: ignore[misc]
    assert there.state(NAME) == ""
    bundles.check(here.cli, here.root / "vz/vmprivate" / disk)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_long_sweep(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    plan = [(fault, DECIDED) for fault in FAULTS if fault != "kill_target_qemu"]
    plan += [(fault, stage) for stage in STAGES for fault in FAULTS]
    sweep(Machine(two_nodes, tiny_iso, NAME), plan)


@pytest.mark.long
def test_a_paused_one_stays_paused(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """Moved, and moved with a death after the decision."""
    machine = Machine(two_nodes, tiny_iso, NAME)
    machine.at.prlctl("start", NAME)
    machine.at.prlctl("pause", NAME)
    machine.move()
    assert machine.at.state(NAME) == "paused"
    fault = Fault(machine.at, machine.other)
    assert _migrate(fault, FAULTS["kill_target_vzd"], DECIDED)
    states = [""]

    def settled() -> bool:
        states[:] = [side.state(NAME) for side in (fault.here, fault.there)]
        return sorted(states) == ["", "paused"]

    wait_for(settled, 120)
    for side in (fault.here, fault.there):
        wait_for(lambda side=side: not _left(side), 60)  # type: ignore[misc]


def sweep(machine: Machine, plan: Sequence[tuple[str, str]], *, busy: bool = False) -> None:
    """Run every fault; the machine stays wherever it comes to be.  busy: its disk is written to."""
    machine.boot()
    if busy:
        machine.load()
    here, there = machine.at, machine.other
    here.cli("prlctl", "exec", NAME, f"mkdir -p /root; cat >/root/count <<'END'\n{COUNT}\nEND")
    here.inside(NAME, "sh /root/count >/dev/null 2>&1 </dev/null &")
    wait_for(lambda: here.counter(NAME) > 0)
    for name, stage in plan:
        try:
            here, there = strike(here, there, name, stage)
            machine.at = here
        except (AssertionError, OSError, ValueError, IndexError) as error:
            raise AssertionError(f"{name} at {stage}: {error}") from error


def strike(here: Side, there: Side, name: str, stage: str) -> tuple[Side, Side]:
    """One migration with one fault; returns (where it is, the other side)."""
    before = here.counter(NAME)
    fault = Fault(here, there)
    began = time.monotonic()
    struck = _migrate(fault, FAULTS[name], stage)
    now, other = _settled(here, there)
    after = now.counter(NAME)
    assert after >= before, f"the counter went back from {before} to {after}"
    wait_for(lambda: now.counter(NAME) > after)
    for side in (here, there):
        wait_for(lambda side=side: not _left(side), 60)  # type: ignore[misc]
    assert not (other.root / "run/pyvz/vm").is_dir() or not os.listdir(other.root / "run/pyvz/vm")
    where = "moved" if now is there else "stayed"
    late = "" if struck else " (late)"
    print(f"{name} at {stage}: {where}, {time.monotonic() - began:.1f} s{late}", flush=True)
    return now, other


def _left(side: Side) -> list[str]:
    homes = side.root / "vz/vmprivate"
    found = [path.name for path in homes.glob(".*")] if homes.is_dir() else []
    return found + side.leftovers()
