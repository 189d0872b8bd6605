"""Move an environment to another node: the verb, and what is left to do after a death.

The phases are in giving.py; the other node's side is immigrate.py.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from pyvz.errors import AlreadyRunning, InvalidState, VZError
from pyvz.migration import address as addresses
from pyvz.migration import decision
from pyvz.migration.dial import Peer
from pyvz.migration.request import Report, Request
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    backuplease,
    burial,
    departure,
    home,
    lifecycle,
    liverestore,
    machineclone,
    provision,
    pulled,
)
from pyvz.operations.connect import connected
from pyvz.operations.giving import Giving
from pyvz.operations.machinegiving import MachineGiving
from pyvz.operations.node import Node
from pyvz.store.journal import Journal

log = logging.getLogger(__name__)


def migrate(node: Node, ref: str, request: Request, progress: Progress | None = None) -> Report:
    """Move an environment to another node.

    Raises ConnectionFailed, NodesDiffer, AlreadyExists, AddressInUse, NoSpace, Cancelled, ...: it
    is here, as it was.  InDoubt: see there.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    addresses.parse(request.target)  # a wrong one is said before anything else
    with backuplease.lease(node, env, "migrate"):
        provision.repair(node, env)
        _require(node, env, request)
        hint = "To copy it here use: prlctl clone"
        with connected(node, request.target, request, progress, hint=hint) as peer:
            return give(node, env, peer, request, progress)


def prepare_and_give(
    node: Node, env: Environment, peer: Peer, request: Request, progress: Progress
) -> Report:
    """Check the state and give: for a node that has asked us to; the caller holds the lease."""
    provision.repair(node, env)
    _require(node, env, request)
    return give(node, env, peer, request, progress)


def give(node: Node, env: Environment, peer: Peer, request: Request, progress: Progress) -> Report:
    """Move an environment to the node at the other end; the caller holds the lease."""
    with ExitStack() as stack:
        kind = MachineGiving if env.kind == Kind.VM else Giving
        giving = kind(node, env, peer, request, progress)
        stack.callback(giving.close)
        return giving.run()


def recover(node: Node) -> None:
    """Put right what a vzd that has died left of moves (start of vzd)."""
    decision.prune(node.paths)
    liverestore.settle(node)
    burial.resume(node)
    restart(node)


def restart(node: Node) -> None:
    """Start again what was stopped for a move that failed."""
    for uuid in departure.marked(node):
        try:
            lifecycle.start(node, uuid)
        except VZError as error:
            log.warning("%s was stopped to be migrated and does not start: %s", uuid, error)
        departure.unmark(node, uuid)


def retry(node: Node) -> bool:
    """Ask again about those in doubt, tell of those fetched; whether there are any (left)."""
    left = pulled.tell_all(node)
    for record in Journal.all(node.paths):
        if record.verb != departure.VERB or not record.step(departure.DECIDING):
            continue
        env = home.from_data(record.uuid, record.data)
        try:
            with node.lease(env, "migrate", timeout=0.0):
                provision.repair_leftover(node, env)
        except (VZError, OSError) as error:
            log.info("%s: %s", env.name, error)
            left = True
    if departure.marked(node):
        restart(node)
    return left


def force(node: Node, ref: str, *, here: bool) -> None:
    """Decide for the other node about one in doubt: it is here, or there."""
    env = node.registry.resolve(ref)
    with node.lease(env, "migrate"):
        departure.force(node, env, here=here)
    restart(node)


def _require(node: Node, env: Environment, request: Request) -> None:
    """Raise unless it is in a state in which it can go."""
    if env.kind == Kind.VM:
        machineclone.check_unused(node, env)
        backuplease.refuse(node, env)
    status = lifecycle.require(node, env, "migrate")
    if env.kind == Kind.CT and status == Status.PAUSED:
        raise AlreadyRunning(
            f"{env.name} is paused", hint="Let it go on (prlctl resume), or stop it first."
        )
    if request.clone and status == Status.SUSPENDED:
        raise InvalidState(f"{env.name} is suspended: there would be two of the same memory")
    if request.clone and status != Status.STOPPED:
        raise InvalidState(f"{env.name} is {status}: a copy is made of a stopped one")
