"""The memory manager at work: rounds of the policy in force, and its exchange while all run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pyvz.errors import Unsupported, VZError
from pyvz.linux import numa
from pyvz.memory import guarantee
from pyvz.memory.balance import Balancer, Placed, Round
from pyvz.memory.policy import base as policies
from pyvz.memory.policy.base import NumaNode, Policy
from pyvz.model.config_limits import limits_of
from pyvz.model.limits import Limits
from pyvz.model.memory import Sample
from pyvz.operations import memory
from pyvz.operations.node import Node

log = logging.getLogger(__name__)

_FACTS = 300.0  # seconds after which NUMA nodes and pinned environments are read again


class MemoryWatch:
    """The rounds of one node.  Thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._guard = threading.Lock()
        self._balancer = Balancer(
            self._first_policy(), lambda entry: memory.managed(node, entry), self._place
        )
        self._numa: tuple[NumaNode, ...] = ()
        self._pinned: frozenset[str] = frozenset()
        self._read = 0.0
        self.wake: Callable[[], None] = lambda: None  # brings the next round forward

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._balancer.policy

    @property
    def counts(self) -> dict[str, int]:
        """What was done since the daemon began."""
        return self._balancer.counts._asdict()

    def sample(self, name: str) -> tuple[float, Sample] | None:
        """Return when a VE was looked at last, and what was seen."""
        return self._balancer.samples.get(name)

    def look(self) -> float:
        """Do one round; return the seconds until the next one."""
        with self._guard:
            try:
                self._balancer.round(self._about())
                self._node.cgroups.memory.settle()
                memory.promise(self._node, sum(p.low for p in self._balancer.given.values()))
            except Unsupported:
                return _FACTS
            except (OSError, VZError) as error:
                log.warning("a round of the memory manager: %s", error)
            return self._balancer.policy.interval()

    def switch(self, name: str, *, keep: bool = True) -> None:
        """Change the policy while everything runs.  keep: write it to vcmmd.conf too.

        Raises PolicyNotFound, BadValue (what runs does not fit), InternalError: the old one stays.
        """
        wanted = policies.load(name)
        memory.check_policy(self._node, wanted)
        with self._guard:
            self._balancer.switch(wanted, self._about())
            book = self._node.memory
            book.set_policy(wanted.name)
            if keep and book.conf().policy != wanted.name:
                book.save_conf(book.conf().with_policy(wanted.name))
        self._settle()
        self.wake()
        log.info("the memory policy is %s now", wanted.name)

    def forget(self, name: str) -> None:
        """A VE is not managed any more."""
        with self._guard:
            self._balancer.forget(name)

    def close(self) -> None:
        """End what keeps ceilings."""
        try:
            self._node.cgroups.memory.close()
        except Unsupported:
            return

    def _settle(self) -> None:
        """Give everybody who leaves it to the policy the guarantee of the new one."""
        at = memory.memory_of_node(self._node)
        with self._node.memory.locked():
            for entry in self._node.memory.entries().values():
                self._node.memory.put(guarantee.settled(entry, self.policy, at))

    def _first_policy(self) -> Policy:
        name = self._node.memory.policy
        try:
            found = policies.load(name)
        except VZError as error:
            log.warning("%s; noop is in force", error)
            found = policies.load("noop")
        self._node.memory.set_policy(found.name)
        return found

    def _about(self) -> Round:
        if time.monotonic() - self._read > _FACTS or not self._read:
            self._read = time.monotonic()
            self._numa = tuple(NumaNode(*facts) for facts in numa.nodes())
            self._pinned = self._find_pinned() if len(self._numa) > 1 else frozenset()
        node = self._node
        entries = node.memory.entries().values()
        return Round(memory.memory_of_node(node), entries, self._numa, self._pinned)

    def _find_pinned(self) -> frozenset[str]:
        return frozenset(
            env.uuid
            for env, config, _ in self._node.registry.snapshot()
            if config.cpu.mask not in {"", "auto"}
            or config.cpu.nodemask not in {"", "auto"}
            or config.cpu.cpus  # kept on so many processors (operations/cpulimits.py)
        )

    def _place(self, placed: Placed) -> None:
        """Bind an environment to processors and memory, or leave both to its owner again."""
        env = self._node.registry.resolve(placed.name)
        own = limits_of(self._node.registry.config(env), cpus=1)
        limits = Limits(
            cpus=own.cpus if placed.cpus is None else placed.cpus,
            mems=own.mems if placed.mems is None else placed.mems,
        )
        self._node.cgroups.apply(placed.name, limits)
