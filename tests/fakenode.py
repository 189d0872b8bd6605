"""A kernel test's engine dressed as a node, for operations that need one."""

from __future__ import annotations

from engine import Engine
from pyvz.linux import features
from pyvz.operations.node import Node
from pyvz.store.idrange import IdRanges
from pyvz.store.registry import Registry


class Silent:
    """Nobody listens."""

    def publish(self, event: object) -> None:
        del event


def engine_node(engine: Engine) -> Node:
    """The engine as a node whose registry is empty."""
    runtime, paths = engine.runtime, engine.paths
    found = features.probe(paths.run)
    parts = (runtime, engine.cgroups, found, IdRanges(paths), Silent())
    return Node(paths, Registry(paths), *parts)
