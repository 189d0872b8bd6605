"""Suspend and resume: the verbs, and their parts as `vzctl chkpnt` and `vzctl restore` have them.

What is written where, and how a death is repaired, is in dump.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Busy, Unsupported
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import dump, lifecycle, machine
from pyvz.operations.dump import DumpOptions, ResumeOptions
from pyvz.operations.node import Node


class SuspendOptions(NamedTuple):
    """file: where the memory goes; None: where `resume` and `start` find it.

    stay: it is not ended but stands still, in memory (`vzctl chkpnt --dump`).  hang_up: end what
    runs of exec and enter, instead of refusing.
    """

    file: Path | None = None
    stay: bool = False
    hang_up: bool = False


def suspend(
    node: Node,
    ref: str,
    *,
    options: SuspendOptions | None = None,
    progress: Progress | None = None,
) -> Environment:
    """Write a running container's memory to disk and end it.

    Raises Busy (programs of exec or enter run in it), CheckpointError, NoSpace, Unsupported,
    NotRunning: it goes on as if nothing had been.
    """
    options = options or SuspendOptions()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        if options.file is not None or options.stay:
            raise Unsupported("A virtual machine is suspended to its home, and ends")
        return machine.suspend(node, env, progress)
    with node.lease(env, "suspend"):
        lifecycle.repair(node, env)
        status = lifecycle.require(node, env, "suspend")
        ready(node, env, node.registry.config(env))
        if options.hang_up:
            node.checkpoint.hang_up(env.uuid)
        foreign(node, env)
        if status == Status.PAUSED:
            node.runtime.unpause(env.uuid)
        wanted = DumpOptions(options.file or dump.default(env), options.stay)
        dump.suspend(node, env, wanted, progress or NoProgress())
        node.publish("ve-suspend", env)
    return env


def restore(
    node: Node, ref: str, options: ResumeOptions, *, progress: Progress | None = None
) -> Environment:
    """Bring a container back from a file that `suspend` has written.

    Raises AlreadyRunning, RestoreError: the file stays.
    """
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        raise Unsupported("A virtual machine is resumed from its home only")
    with node.lease(env, "resume"):
        lifecycle.repair(node, env)
        lifecycle.require(node, env, "start")
        dump.resume(node, env, options, progress or NoProgress())
        node.publish("ve-resume", env, was="suspended")
    return env


def ready(node: Node, env: Environment, config: Config) -> None:
    """Raise Unsupported for a container whose memory can never be saved on this node."""
    if env.kind != Kind.CT:
        raise Unsupported("Virtual machines are not suspended this way")
    flags = config.security.features
    if flags is not None and "nesting" in flags.on:
        raise Unsupported(
            f"{env.name} may have containers of its own (--features nesting:on): CRIU cannot save"
            " those",
            hint="Stop it instead; or set --features nesting:off and restart it.",
        )
    node.checkpoint.program()


def foreign(node: Node, env: Environment) -> None:
    """Raise Busy when programs of exec or enter run in a container.

    They are no children of its init and their pipes lead to the node: they cannot be saved.
    """
    count = len(node.checkpoint.sessions(env.uuid))
    if count:
        raise Busy(
            f"{env.name} cannot be suspended: {count} programs of exec or enter run in it",
            hint="End them first: a program of the node cannot be taken along.",
        )
