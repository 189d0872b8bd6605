"""noop: every VE keeps its limit and its guarantee, the kernel does the rest."""

from __future__ import annotations

from pyvz.memory.policy.base import Plan, View
from pyvz.model.memory import Protection, VeType


class Policy:
    """See base.Policy."""

    name = "noop"
    overcommit = True

    def auto_guarantee(self, kind: VeType) -> int:
        """40 % for machines (DEFAULT_GUARANTEE_VM of the original), nothing for containers."""
        return 40 if kind.machine else 0

    def plan(self, view: View) -> Plan:
        """Protect the guarantee alone."""
        return Plan({name: Protection() for name in view.ves})

    def interval(self) -> float:
        """Seldom: there is nothing to move, only new VEs to find."""
        return 30.0
