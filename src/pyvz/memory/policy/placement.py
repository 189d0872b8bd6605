"""Which NUMA node an environment is kept on: the one with the most free memory, then balanced.

On a machine with one node nothing is placed.  What the owner has pinned stays; a VE that is larger
than a node is not placed.  At most one VE moves in a round, since the kernel then carries its
pages over (cpuset.memory_migrate).
"""

from __future__ import annotations

from pyvz.memory.policy.base import NumaNode, Ve, View
from pyvz.model.memory import Protection, VeType

_NOWHERE = Protection()


class Placement:
    """Where everybody is.

    every: seconds between two moves.  imbalance: how much more the busiest node may be used than
    the freest, as a share of that, before anybody is moved.
    """

    def __init__(self, *, every: float = 0.0, imbalance: float = 0.25) -> None:
        self._every = every
        self._imbalance = imbalance
        self._where: dict[str, int] = {}
        self._since = 0.0

    def protections(self, view: View) -> dict[str, Protection]:
        """Return the protections that keep everybody where they are placed."""
        if len(view.numa) < 2:
            self._where.clear()
            return dict.fromkeys(view.ves, _NOWHERE)
        nodes = {node.number: node for node in view.numa}
        self._where = {n: at for n, at in self._where.items() if n in view.ves and at in nodes}
        self._place_new(view, nodes)
        self._since += view.seconds
        if self._since >= self._every and self._move_one(view, nodes):
            self._since = 0.0
        return {name: self._protection(name, nodes) for name in view.ves}

    def _place_new(self, view: View, nodes: dict[int, NumaNode]) -> None:
        coming = [
            (ve.now.used, name)
            for name, ve in view.ves.items()
            if name not in self._where and _placeable(ve, nodes)
        ]
        for _, name in sorted(coming, reverse=True):
            load = self._load(view, nodes)
            self._where[name] = min(nodes, key=lambda number: (load[number], number))

    def _move_one(self, view: View, nodes: dict[int, NumaNode]) -> bool:
        load = self._load(view, nodes)
        busy, free = max(load, key=lambda n: load[n]), min(load, key=lambda n: load[n])
        if load[busy] <= load[free] * (1 + self._imbalance):
            return False
        # The largest that leaves both nodes nearer to each other than they were.
        gap = (load[busy] - load[free]) * nodes[busy].total / 2
        there = [
            (view.ves[name].now.used, name)
            for name, at in self._where.items()
            if at == busy and 0 < view.ves[name].now.used <= gap
        ]
        if not there:
            return False
        self._where[max(there)[1]] = free
        return True

    def _load(self, view: View, nodes: dict[int, NumaNode]) -> dict[int, float]:
        """Return the share of each node's memory that those placed on it use."""
        used = dict.fromkeys(nodes, 0)
        for name, at in self._where.items():
            used[at] += view.ves[name].now.used
        return {number: used[number] / max(node.total, 1) for number, node in nodes.items()}

    def _protection(self, name: str, nodes: dict[int, NumaNode]) -> Protection:
        at = self._where.get(name)
        if at is None:
            return _NOWHERE
        return Protection(cpus=nodes[at].cpus, mems=str(at))


def _placeable(ve: Ve, nodes: dict[int, NumaNode]) -> bool:
    least = min(node.total for node in nodes.values())
    return not ve.pinned and ve.entry.type is not VeType.SRVC and ve.now.used < least
