"""A kernel test's engine dressed as a node, for operations that need one."""

from __future__ import annotations

from engine import Engine
from pyvz.linux import features
from pyvz.model.environment import Environment, Kind
from pyvz.model.event import Event
from pyvz.operations.node import Node
from pyvz.store.idrange import IdRanges
from pyvz.store.registry import Registry
from pyvz.vm.runtime import Machines


class Listener:
    """Takes note of what is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)


def engine_node(engine: Engine) -> Node:
    """The engine as a node whose registry is empty."""
    runtime, paths = engine.runtime, engine.paths
    found = features.probe(paths.run)
    parts = (runtime, engine.cgroups, found, IdRanges(paths), Listener())
    return Node(paths, Registry(paths), *parts, Machines(engine.cgroups, paths))


def engine_environment(engine: Engine, uuid: str) -> Environment:
    """An environment that no registry knows."""
    return Environment(uuid, uuid, "tiny", Kind.CT, engine.paths.private / uuid)
