"""Whether a verb may begin: the table of model/status.py against the state of an environment; and
the state that others see meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvz.errors import (
    AlreadyMounted,
    AlreadyRunning,
    InvalidState,
    NotMounted,
    NotRunning,
    Unsupported,
)
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import LEGAL_FROM, Status
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.store.state import RunState

# What needs the disks of a stopped environment for itself.
_UNMOUNTED = frozenset({"delete", "clone", "move", "migrate", "unregister", "restore"})


def containers_only(env: Environment, what: str) -> None:
    """Raise Unsupported for a virtual machine, of which WHAT cannot be had by this version."""
    if env.kind == Kind.VM:
        raise Unsupported(f"{env.name} is a virtual machine: {what}")


def require(node: Node, env: Environment, verb: str) -> Status:
    """Return the status when `verb` may begin from it; else raise the InvalidState that fits."""
    status = node.status(env)
    if status in LEGAL_FROM.get(verb, frozenset(Status)):
        return status
    if status in {Status.RUNNING, Status.PAUSED, Status.STARTING, Status.STOPPING}:
        if verb in {"pause", "exec", "stop"}:
            raise InvalidState(f"{env.name} is {status}")
        hint = "" if verb in {"start", "resume"} else "Stop it first."
        raise AlreadyRunning(f"{env.name} is {status}", hint=hint)
    if verb == "mount" and status == Status.MOUNTED:
        raise AlreadyMounted(f"{env.name} is already mounted")
    if verb == "umount":
        raise NotMounted(f"{env.name} is not mounted")
    if verb in {"pause", "exec", "stop", "suspend"} or (
        verb == "resume" and status != Status.MOUNTED
    ):
        raise NotRunning(f"{env.name} is not running")
    if verb in _UNMOUNTED and status == Status.MOUNTED:
        raise AlreadyMounted(f"{env.name} is mounted", hint="Unmount it first.")
    raise InvalidState(f"{env.name} is {status}")


@contextmanager
def stopping(node: Node, env: Environment, journal: Journal | None) -> Iterator[RunState | None]:
    """Have it seen as stopping; when the block fails it runs on, and the journal is done."""
    state = RunState.load(node.paths, env.uuid)
    if state is not None:
        state._replace(status=Status.STOPPING).save(node.paths, env.uuid)
    try:
        yield state
    except BaseException:
        if state is not None:
            state._replace(status=Status.RUNNING).save(node.paths, env.uuid)
        if journal is not None:
            journal.done()
        raise
