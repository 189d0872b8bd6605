"""density: as many environments as the node can bear.

As documented for Virtuozzo: machines are promised 40 % of their limit, containers nothing;
overcommitment is allowed; environments are kept on NUMA nodes and moved when the busiest node is
used more than half as much again as the freest.
"""

from __future__ import annotations

from pyvz.memory.policy.base import Plan, View
from pyvz.memory.policy.placement import Placement
from pyvz.model.memory import VeType


class Policy:
    """See base.Policy."""

    name = "density"
    overcommit = True

    def __init__(self) -> None:
        self._placement = Placement(imbalance=0.5)

    def auto_guarantee(self, kind: VeType) -> int:
        """40 % for machines, nothing for containers."""
        return 40 if kind.machine else 0

    def plan(self, view: View) -> Plan:
        """Place everybody on NUMA nodes, by their memory."""
        return Plan(self._placement.protections(view))

    def interval(self) -> float:
        """Often enough for new VEs to find their node."""
        return 30.0
