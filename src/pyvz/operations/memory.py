"""Promises of memory: made before an environment runs, kept while it does (design: memory.md).

    admit(node, env, config)     before anything is started, restored or received: reserves
    activate(node, env)          its processes run: what was promised is in force
    change(node, env, ...)       its configuration is about to change
    release(node, uuid)          it has ended, or never came to run; idempotent

A reservation is an entry of the memory book (store/memorybook.py), which outlives vzd.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from pyvz.errors import BadValue, GuaranteeRefused, PolicyNotFound, Unsupported, VZError
from pyvz.linux.cgroup_memory import Promise, node_memory
from pyvz.memory import guarantee
from pyvz.memory.managed import Group, Managed
from pyvz.memory.policy import base as policies
from pyvz.memory.policy.base import Policy
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.memory import NodeMemory, Protection, Reservation, VeType
from pyvz.operations import machinememory
from pyvz.operations.node import Node
from pyvz.store.lease import holder
from pyvz.units import UNLIMITED
from pyvz.vm.spec import PROMISED

log = logging.getLogger(__name__)

FIELDS = frozenset(
    f"memory.{name}"
    for name in ("physpages", "privvmpages", "swappages", "guarantee", "guarantee_bytes")
)
# What an administrator does to start in spite of a refusal, where the tool has it.
_OVERRIDE = "vzctl start --force starts it all the same: then no guarantee is safe."


def policy(node: Node) -> Policy:
    """Return the policy in force; an unknown one in vcmmd.conf counts as noop, as in the original.

    A fresh object: for its rules only, the memory of rounds is the watch's.
    """
    name = node.memory.policy
    try:
        return policies.load(name)
    except PolicyNotFound:
        return policies.load("noop")


def memory_of_node(node: Node) -> NodeMemory:
    """Return how much memory the node has, and how much of it may be promised."""
    total = node_memory(node.cgroups.memory, 0)
    return node_memory(node.cgroups.memory, node.memory.conf().reserved(total.total))


def kind_of(env: Environment) -> VeType:
    """Return what an environment is registered as."""
    return VeType.VM if env.kind == Kind.VM else VeType.CT


def admit(
    node: Node, env: Environment, config: Config, *, overhead: int = 0, force: bool = False
) -> None:
    """Reserve what CONFIG promises; raises GuaranteeRefused, BadValue: then nothing is reserved.

    Called before anything is changed for a start, a restore or an incoming migration; whoever
    called it calls `release` when that fails.  overhead: what a machine needs beside its memory.
    force: reserve in spite of a refusal.
    """
    at = memory_of_node(node)
    rules = policy(node)
    wanted = guarantee.of_config(env.uuid, kind_of(env), config, at)._replace(overhead=overhead)
    wanted = guarantee.settled(wanted, rules, at)
    with node.memory.locked():
        try:
            guarantee.admit(wanted, node.memory.entries().values(), at, rules, label=env.name)
        except GuaranteeRefused as refusal:
            if not force:
                refusal.hint = f"{refusal.hint}  {_OVERRIDE}"
                raise
            log.warning("%s starts in spite of: %s", env.name, refusal)
        node.memory.put(wanted)


def check(node: Node, env: Environment, config: Config) -> None:
    """Raise what `admit` would for an environment that does not run, were it alone on the node."""
    at = memory_of_node(node)
    wanted = guarantee.of_config(env.uuid, kind_of(env), config, at)
    if config.memory.guarantee_bytes is not None or config.memory.guarantee is not None:
        rules = policies.load("noop")
        guarantee.admit(guarantee.settled(wanted, rules, at), (), at, rules, label=env.name)


def activate(node: Node, env: Environment) -> None:
    """Put in force what was promised to an environment that runs now.

    A kernel that refuses is logged: it runs without a guarantee then.
    """
    entry = node.memory.entries().get(env.uuid)
    if entry is None:
        log.warning("%s runs without having been admitted", env.name)
        return
    if not entry.active:
        entry = entry._replace(active=True)
        node.memory.put(entry)
    protect(node, entry)


def protect(node: Node, entry: Reservation) -> None:
    """Protect the guarantee of one VE; the policy's protection comes with its next round."""
    try:
        if (found := managed(node, entry)) is not None:
            promise(node)
            found.protect(entry.guarantee, Protection())
    except (OSError, VZError) as error:
        log.warning("%s: its guarantee is not in force: %s", entry.name, error)


def promise(node: Node, low: int | None = None) -> None:
    """Protect the groups above our environments by the sum of what they are promised.

    low: the sum of what the policy protects; None: as it was.
    """
    active = [entry for entry in node.memory.entries().values() if entry.active]
    least = sum(entry.guarantee for entry in active if entry.type is not VeType.SRVC)
    node.cgroups.memory.promise(Promise(least, low))


def managed(node: Node, entry: Reservation) -> Managed | None:
    """Return the way to one VE, None when this node cannot reach it."""
    memory = node.cgroups.memory
    if entry.type.machine:
        return machinememory.Machine(node, entry)
    if entry.type is VeType.SRVC:
        return Group(memory, memory.service(entry.name))
    return Group(memory, memory.path(entry.name))


def change(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Take over a running environment's new figures, before its limits are put in force.

    Raises GuaranteeRefused, BadValue; UNDO gives back what was reserved before.
    """
    if not any(old.get(field) != new.get(field) for field in FIELDS):
        return
    at = memory_of_node(node)
    before = node.memory.entries().get(env.uuid)
    wanted = guarantee.of_config(env.uuid, kind_of(env), new, at)
    replace(
        node,
        wanted._replace(active=True, overhead=before.overhead if before else 0),
        undo,
        label=env.name,
    )


def replace(node: Node, wanted: Reservation, undo: ExitStack, *, label: str) -> None:
    """Put WANTED in the place of a VE's entry when the node can keep it; protect it."""
    at = memory_of_node(node)
    rules = policy(node)
    wanted = guarantee.settled(guarantee.check(wanted), rules, at)
    with node.memory.locked():
        before = node.memory.entries().get(wanted.name)
        # Who asks for less than he has is not refused, however full the node is.
        if before is None or wanted.minimum > before.minimum or wanted.limit > before.limit:
            others = node.memory.entries().values()
            guarantee.admit(wanted, others, at, rules, label=label)
        node.memory.put(wanted)
    undo.callback(_put_back, node, wanted.name, before)
    if wanted.active and (before is None or before.guarantee != wanted.guarantee):
        protect(node, wanted)


def _put_back(node: Node, name: str, before: Reservation | None) -> None:
    if before is None:
        node.memory.drop(name)
    else:
        node.memory.put(before)
        protect(node, before)


def release(node: Node, uuid: str) -> None:
    """Give back what was reserved for an environment; nothing reserved is fine."""
    if uuid in node.memory.entries():
        node.memory.drop(uuid)


def recover(node: Node) -> None:
    """At the start of vzd: the book agrees with what runs, and every limit is what it must be.

    A limit may have been left lowered where vzd was killed while it made somebody give back.
    """
    try:
        running = {*node.runtime.running(), *node.machines.running()}
        memory = node.cgroups.memory
    except Unsupported as error:
        log.warning("no memory is managed: %s", error)
        return
    for name, entry in node.memory.entries().items():
        if entry.type is VeType.SRVC:
            continue
        if name not in running:
            # A start that is under way has its lease.
            if entry.active or holder(node.paths, name) is None:
                node.memory.drop(name)
        elif entry.active and not entry.type.machine:  # a machine's is not the guest's memory
            _restore_limits(node, entry, memory.present_limits(memory.path(name)))
    known = node.memory.entries()
    for env in node.registry.environments():
        if env.uuid in running and env.uuid not in known:
            _adopt(node, env)


def _adopt(node: Node, env: Environment) -> None:
    """Register an environment that a vzd without this manager has started."""
    try:
        overhead = PROMISED if env.kind == Kind.VM else 0
        admit(node, env, node.registry.config(env), overhead=overhead, force=True)
        activate(node, env)
    except (VZError, OSError) as error:
        log.warning("%s runs without a reservation: %s", env.name, error)


def _restore_limits(node: Node, entry: Reservation, present: tuple[int | None, int | None]) -> None:
    memory, swap = present
    if memory is None or _same(memory, entry.limit):
        return
    log.warning("%s: its memory limit was left at %s bytes", entry.name, memory)
    groups = node.cgroups.memory
    try:
        groups.set_limits(
            groups.path(entry.name), entry.limit, UNLIMITED if swap is None else entry.swap
        )
    except (OSError, VZError) as error:
        log.warning("%s: its limit could not be put back: %s", entry.name, error)


def _same(present: int, wanted: int) -> bool:
    return abs(present - wanted) < 65536  # the kernel rounds to its pages


def check_policy(node: Node, rules: Policy) -> None:
    """Raise BadValue when what runs does not fit a policy."""
    at = memory_of_node(node)
    entries = [guarantee.settled(entry, rules, at) for entry in node.memory.entries().values()]
    promised = sum(entry.minimum for entry in entries)
    given = sum(min(entry.limit, at.usable) for entry in entries if entry.type is not VeType.SRVC)
    for size, what in ((promised, "guarantees"), (0 if rules.overcommit else given, "limits")):
        if size > at.usable:
            raise BadValue(
                f"the policy {rules.name} cannot be chosen now: the {what} of what runs would make "
                f"{guarantee.mib(size)} of the {guarantee.mib(at.usable)} that the node has",
                hint="Lower limits (--memsize) or guarantees, or stop environments.  "
                "Nothing was changed.",
            )
