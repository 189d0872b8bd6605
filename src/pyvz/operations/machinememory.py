"""A virtual machine in the rounds of the memory manager: its control group, and its balloon.

A policy's ceiling moves the balloon.  A guest is never left with less than it needs by its own
word, and one that says nothing keeps what it has: taking memory from it blindly would kill its
programs.  What a guest with PCI devices of the node gives up is not the node's (vfio locks it).
"""

from __future__ import annotations

from contextlib import suppress

from pyvz.errors import SetError, VZError
from pyvz.memory.managed import Group
from pyvz.model.memory import Protection, Reservation, Sample
from pyvz.operations import machinepci
from pyvz.operations.node import Node
from pyvz.units import MIB, UNLIMITED
from pyvz.vm import balloon
from pyvz.vm.balloon import Told

MARGIN = 64 * MIB  # of what a guest has available is left to it, or a sixteenth of all if more
_ANSWER = 30.0  # seconds for the answer to who asks for a limit
_LEAST = 16 * MIB  # a smaller move is not worth the guest's work


class Machine:
    """See memory/managed.py: Managed."""

    def __init__(self, node: Node, entry: Reservation) -> None:
        memory = node.cgroups.memory
        self._node, self._entry = node, entry
        self._group = Group(memory, memory.path(entry.name))

    def sample(self) -> Sample | None:
        """Return what the group uses, and what of it is the guest's page cache by its word."""
        found = self._group.sample()
        told = said(self._node, self._entry.name)
        if found is None or told is None or not told.updated:
            return found
        cache = min(told.caches, found.used)
        return found._replace(cache=cache, anon=found.used - cache, major=told.major)

    def protect(self, guarantee: int, wanted: Protection) -> None:
        """Protect the group; a ceiling is the balloon's matter."""
        least = guarantee + self._entry.overhead if guarantee else 0
        self._group.protect(least, wanted._replace(high=UNLIMITED))
        target = self._entry.limit
        if wanted.high < UNLIMITED and not machinepci.has(self._node, self._entry.name):
            target = min(target, max(wanted.high - self._entry.overhead, guarantee))
        self._move(target)

    def take(self, amount: int) -> int:
        """Inflate the balloon; what it gives comes within moments."""
        told = said(self._node, self._entry.name)
        if told is None or not told.updated or machinepci.has(self._node, self._entry.name):
            return 0
        before = told.actual
        return max(0, before - self._move(max(before - amount, self._entry.guarantee)))

    def _move(self, target: int) -> int:
        """Bring the guest's memory to TARGET, or as near as is good for it; return how much."""
        told = said(self._node, self._entry.name)
        if told is None or target >= UNLIMITED:
            return told.actual if told else target
        wanted = target if target >= told.actual else max(target, needed(told))
        if abs(wanted - told.actual) < max(_LEAST, told.actual // 32):
            return told.actual
        balloon.leave(self._node.machines.monitor(self._entry.name), wanted)
        return wanted


def said(node: Node, uuid: str, patience: float = balloon.PATIENCE) -> Told | None:
    """Return what is known of the memory of a machine; None when it does not run on."""
    with suppress(VZError):
        monitor = node.machines.connected(uuid)  # a round waits for nobody
        if monitor is not None and monitor.state == "running":
            return balloon.told(monitor, patience)
    return None


def needed(told: Told) -> int:
    """Return how much a guest needs at least, by its own word; all it has when it says nothing."""
    spare = told.available - max(MARGIN, told.total // 16)
    return told.actual - max(0, spare if told.updated else 0)


def limit(node: Node, entry: Reservation) -> None:
    """Have the balloon keep a new limit; raises SetError when there is not so much memory."""
    told = said(node, entry.name, _ANSWER)
    if told is None:
        raise SetError("The virtual machine does not answer")
    monitor = node.machines.monitor(entry.name)
    sizes = monitor.execute("query-memory-size-summary")
    there = int(sizes["base-memory"]) + int(sizes.get("plugged-memory", 0))
    if entry.limit > there:
        raise SetError(
            f"The virtual machine has {there // MIB} MiB of memory",
            hint="More is plugged in by: prlctl set ID --memsize SIZE",
        )
    balloon.leave(monitor, entry.limit, _ANSWER)
