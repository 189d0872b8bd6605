"""performance: nobody shares what another may need.

As documented for Virtuozzo: machines are promised 80 % of their limit, containers nothing;
overcommitment is not allowed: an environment starts only when its whole limit is free; they are
kept on NUMA nodes, and balanced every five minutes.
"""

from __future__ import annotations

from pyvz.memory.policy.base import Plan, View
from pyvz.memory.policy.placement import Placement
from pyvz.model.memory import VeType


class Policy:
    """See base.Policy."""

    name = "performance"
    overcommit = False

    def __init__(self) -> None:
        self._placement = Placement(every=300.0)

    def auto_guarantee(self, kind: VeType) -> int:
        """80 % for machines, nothing for containers."""
        return 80 if kind.machine else 0

    def plan(self, view: View) -> Plan:
        """Place everybody on NUMA nodes, by their memory."""
        return Plan(self._placement.protections(view))

    def interval(self) -> float:
        """Often enough for new VEs to find their node."""
        return 30.0
