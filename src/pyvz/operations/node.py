"""A node: everything that a verb may touch, put together in one place (the composition root)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyvz.container.checkpoint import Checkpoint
from pyvz.container.client import KeeperClient
from pyvz.container.runtime import Init, Runtime
from pyvz.linux import cgroup, features
from pyvz.linux.cgroup import Cgroups
from pyvz.linux.features import Features
from pyvz.linux.mount import mount_points
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.event import Event
from pyvz.model.status import Status
from pyvz.model.vzconf import NodeConfig, expand_veid, under
from pyvz.store.idrange import IdRanges
from pyvz.store.lease import Lease, holder
from pyvz.store.memorybook import MemoryBook
from pyvz.store.paths import Paths
from pyvz.store.registry import Registry
from pyvz.store.state import RunState
from pyvz.vm.runtime import Machines, Process

# The systemd unit whose control groups are ours (systemd/pyvz-containers.service).
CONTAINERS_UNIT = "machine.slice/pyvz-containers.service"


PASSING = frozenset({Status.STARTING, Status.STOPPING, Status.SUSPENDING, Status.RESUMING})
# States of a machine that is held by a verb, and QEMU's words for one that goes on by itself.
_UNDER_WAY = frozenset({Status.STOPPING, Status.SUSPENDING, Status.RESUMING})
GOING = frozenset({"", "running", "shutdown", "save-vm", "restore-vm", "finish-migrate"})


class EventSink(Protocol):
    """Where operations tell what happened; the daemon's bus, or a list in a test."""

    def publish(self, event: Event) -> None:
        """Take one event; never blocks and never fails."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node.  Operations get it as their first argument and hold no other state."""

    paths: Paths
    registry: Registry
    runtime: Runtime
    cgroups: Cgroups
    features: Features
    id_ranges: IdRanges
    events: EventSink
    machines: Machines
    default_timeout: float = field(default=0.0)
    memory: MemoryBook = field(default=None)  # type: ignore[assignment]  # made from the paths

    def __post_init__(self) -> None:
        """Open the memory book where none was handed over."""
        if self.memory is None:
            object.__setattr__(self, "memory", MemoryBook(self.paths))

    @property
    def checkpoint(self) -> Checkpoint:
        """Return what dumps and restores containers."""
        return Checkpoint(self.runtime, self.runtime.keeper, self.paths)

    def config(self) -> NodeConfig:
        """Return vz.conf as it is now."""
        return self.registry.node_config()

    def publish(self, name: str, env: Environment, **data: str) -> None:
        """Tell the world that `name` happened to `env`."""
        self.events.publish(Event(time.time(), name, env.uuid, data | {"name": env.name}))

    def tell(self, what: str, **data: str) -> None:
        """Tell the world that `what` happened on the node, to no environment."""
        self.events.publish(Event(time.time(), what, "", data))

    def root(self, env: Environment, config: Config | None = None) -> Path:
        """Return the directory on which the environment's root file system is mounted."""
        text = (config and config.identity.root) or self.config().ve_root
        return under(self.paths.root, expand_veid(text, env.uuid))

    @contextmanager
    def lease(self, env: Environment, action: str, timeout: float | None = None) -> Iterator[Lease]:
        """Hold the environment's lease for `action`; raises Locked when somebody else has it."""
        wait = self.default_timeout if timeout is None else timeout
        taking = Lease.take(self.paths, env.uuid, action, timeout=wait, label=env.name)
        with taking as lease:
            yield lease

    def status(self, env: Environment) -> Status:
        """Return the state that the kernel and the disk show now, without any lock."""
        return StatusReader(self, env.uuid).of(env)


class StatusReader:
    """Statuses of many environments from one look at the keeper (used by lists), or `only` one.

    It is looked at when the first container is asked for: of machines the keeper knows nothing.
    """

    def __init__(self, node: Node, only: str | None = None) -> None:
        self._node = node
        self._only = only
        self._inits: Mapping[str, Init] | None = None
        self._machines: dict[str, Process] | None = None
        self._problems: dict[str, str] = {}
        self._mounted: frozenset[str] | None = None

    @property
    def _running(self) -> Mapping[str, Init]:
        if self._inits is None:
            self._inits = self._node.runtime.running(self._only)
        return self._inits

    def knowing(self, env: Environment, problem: str) -> StatusReader:
        """Take note of what the registry says about one, so that it is not asked again."""
        self._problems[env.uuid] = problem
        return self

    def of(self, env: Environment) -> Status:
        """Return the status of one environment."""
        if env.kind == Kind.VM:
            return self._of_machine(env)
        if env.uuid in self._running:
            return self._of_running(env)
        problem = self._problems.get(env.uuid)
        if self._node.registry.problem(env) if problem is None else problem:
            return Status.INVALID
        if self._is_mounted(env):
            return self._under_way(env) or Status.MOUNTED
        if (env.home / "dump" / "Dump").exists():
            return Status.SUSPENDED
        return Status.STOPPED

    def init(self, env: Environment) -> Init | None:
        """Return the init of a container that runs."""
        return self._running.get(env.uuid)

    def _is_mounted(self, env: Environment) -> bool:
        """Whether its root is, by one look at the mounts for all whose root is there at all."""
        root = self._node.root(env)
        if not root.exists():
            return False
        if self._mounted is None:
            self._mounted = mount_points()
        return os.path.realpath(root) in self._mounted

    def _of_machine(self, env: Environment) -> Status:
        if self._machines is None:
            self._machines = self._node.machines.running()
        if env.uuid not in self._machines:
            if self._node.registry.problem(env):
                return Status.INVALID
            if self._is_mounted(env):
                return Status.MOUNTED
            suspended = (env.home / "dump" / "Dump").exists()
            return Status.SUSPENDED if suspended else Status.STOPPED
        state = RunState.load(self._node.paths, env.uuid)
        busy = holder(self._node.paths, env.uuid) is not None
        if busy and state is not None and state.status in _UNDER_WAY:
            return state.status
        if state is None:
            return Status.STARTING
        word = self._node.machines.state(env.uuid)
        return Status.RUNNING if word in GOING else Status.PAUSED

    def _of_running(self, env: Environment) -> Status:
        found = self._under_way(env)
        if found is not None:
            return found
        return Status.PAUSED if self._node.cgroups.frozen(env.uuid) else Status.RUNNING

    def _under_way(self, env: Environment) -> Status | None:
        """The state that somebody at work on it has written down."""
        state = RunState.load(self._node.paths, env.uuid)
        if state is None or state.status not in PASSING:
            return None
        return state.status if holder(self._node.paths, env.uuid) is not None else None


def open_node(
    paths: Paths,
    events: EventSink,
    *,
    connect_keeper: Callable[[Paths], KeeperClient] = KeeperClient.start_if_absent,
) -> Node:
    """Return the node whose root is `paths.root`, with its keeper running.

    Raises VZError when the keeper cannot be reached or the machine lacks what every node needs.
    """
    registry = Registry(paths)
    config = registry.node_config()  # garbage in vz.conf is told before anything is begun
    found = features.probe(paths.run, [paths.private])
    keeper = connect_keeper(paths)
    parent, delegated = f"{paths.instance}.slice", None
    if paths.root == Path("/"):
        parent = config.cgroup_slice
        delegated = cgroup.delegated_unit(CONTAINERS_UNIT)
    cgroups = cgroup.detect(parent, delegated=delegated)
    runtime = Runtime(keeper, cgroups, found, paths)
    machines = Machines(cgroups, paths)
    return Node(paths, registry, runtime, cgroups, found, IdRanges(paths), events, machines)
