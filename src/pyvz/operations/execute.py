"""Programs inside a container: sessions (exec, enter), the console, and the minimal start.

A *minimal start* runs a stopped container with a shell that only sleeps in init's place, so that a
program (a password change, a script) can be run in the full safety of the engine's namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyvz.container.runtime import ExecRequest, Session
from pyvz.errors import ExecError, NotRunning, VZError
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.operations import lifecycle, machineguest
from pyvz.operations.guestterminal import GuestTerminal
from pyvz.operations.machineguest import GuestSession
from pyvz.operations.node import Node
from pyvz.operations.program import Ended, finish


def open_session(
    node: Node, ref: str, request: ExecRequest, *, offline: bool = False
) -> Session | GuestSession | GuestTerminal:
    """Start a program inside the container and return its session, descriptors included.

    offline: a container that does not run is started minimally for it; `end_minimal` ends that.
    Raises NotRunning (also when paused), ExecError.
    """
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        machineguest.require_running(node, env)
        made = GuestSession if request.terminal is None else GuestTerminal
        return made(node, env, request)
    status = node.status(env)
    if offline and status in {Status.STOPPED, Status.MOUNTED}:
        start_minimal(node, env)
        try:
            return node.runtime.exec(env.uuid, request)
        except BaseException:
            end_minimal(node, env)
            raise
    if status == Status.PAUSED:
        raise NotRunning(f"{env.name} is paused", hint="Let it go on with: prlctl resume")
    if status not in {Status.RUNNING, Status.STARTING, Status.STOPPING}:
        raise NotRunning(f"{env.name} is not running")
    return node.runtime.exec(env.uuid, request)


def run(
    node: Node, env: Environment, argv: Sequence[str], *, data: bytes = b"", timeout: float = 60.0
) -> Ended:
    """Run a program inside the running container to its end; raises NotRunning, Timeout."""
    request = ExecRequest(argv=tuple(argv))
    return finish(node.runtime.exec(env.uuid, request), data, timeout=timeout)


@contextmanager
def minimal(node: Node, env: Environment) -> Iterator[None]:
    """Have the container run for the length of the block: as it is, or started minimally."""
    if node.status(env) == Status.RUNNING:
        yield
        return
    start_minimal(node, env)
    try:
        yield
    finally:
        end_minimal(node, env)


def start_minimal(node: Node, env: Environment) -> None:
    """Start the stopped container with a sleeping shell as its init."""
    lifecycle.start(node, env.uuid, options=lifecycle.StartOptions(repair=True, force=True))


def end_minimal(node: Node, env: Environment) -> None:
    """End a minimal start, whatever still runs inside."""
    try:
        lifecycle.stop(node, env.uuid, options=lifecycle.StopOptions(kill=True))
    except VZError as error:
        raise ExecError(f"{env.name} could not be stopped after the minimal start") from error


def console(node: Node, ref: str) -> int:
    """Return a stream socket that is the container's console; raises NotRunning."""
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machineguest.console(node, env)
    if env.uuid not in node.runtime.running(env.uuid):
        raise NotRunning(f"{env.name} is not running")
    return node.runtime.console(env.uuid)
