"""Environments that start with the node, and that stop with it.

After a boot of the node (once per boot id, remembered in <run>/autostarted) every environment with
ONBOOT=yes starts, and those with ONBOOT=auto that ran when the node went down; BOOTORDER decides,
VE_PARALLEL at a time.  One that fails is logged and told as the event `ve-autostart-failed`; the
others go on.

When the machine goes down, the running ones are stopped in parallel, each in its own way
(AUTOSTOP, else VE_STOP_MODE).  One that cannot be suspended is stopped, and the log says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyvz.daemon.tasks import Work
from pyvz.errors import AlreadyRunning, CommandFailed, Timeout, VZError
from pyvz.linux.process import boot_id
from pyvz.linux.run import run
from pyvz.model.environment import Environment, Kind
from pyvz.operations import lifecycle, suspend
from pyvz.operations.lifecycle import StopOptions
from pyvz.operations.suspend import SuspendOptions

if TYPE_CHECKING:
    from pyvz.daemon.services import Services
    from pyvz.model.task import Progress
    from pyvz.operations.node import Node

MARKER = "autostarted"
STOP_DEADLINE = 300.0  # seconds for all environments together; the unit allows more
LEASE_TIMEOUT = 60.0

logger = logging.getLogger(__name__)


def due(run_folder: Path) -> bool:
    """Whether this is the first vzd since the node booted; says so only once."""
    marker = run_folder / MARKER
    now = boot_id()
    try:
        if marker.read_text().strip() == now:
            return False
    except OSError:
        pass
    marker.write_text(now + "\n")
    return True


async def autostart(services: Services, order: Sequence[Environment]) -> None:
    """Start the environments of ORDER, VE_PARALLEL at a time."""
    free = asyncio.Semaphore(parallel(services.node))

    async def one(env: Environment) -> None:
        await asyncio.sleep(await asyncio.to_thread(_delay, services.node, env))
        async with free:
            work = Work(
                "start",
                env.uuid,
                lambda task: lifecycle.start(services.node, env.uuid, progress=task),
                origin="autostart",
            )
            try:
                await services.tasks.start(work, None).outcome
            except AlreadyRunning:
                pass
            except VZError as error:
                services.node.publish("ve-autostart-failed", env, message=error.message)

    await asyncio.gather(*(one(env) for env in order))


def _delay(node: Node, env: Environment) -> float:
    """Return how long the start of a virtual machine waits (--autostart-delay)."""
    return float(node.registry.peek(env).machine.autostart_delay) if env.kind == Kind.VM else 0.0


def parallel(node: Node) -> int:
    """Return how many environments may start or stop at a time (VE_PARALLEL)."""
    return node.config().ve_parallel or 4 * (os.cpu_count() or 1)


class Stopped(dict[str, list[str]]):
    """{"stopped": [uuid], "failed": [uuid]}."""


def autostop(node: Node, progress: Progress) -> Stopped:
    """Stop everything that runs; never raises for a single one."""
    deadline = time.monotonic() + STOP_DEADLINE
    running = node.runtime.running().keys() | node.machines.running().keys()
    targets = [env for env in node.registry.environments() if env.uuid in running]
    result = Stopped(stopped=[], failed=[])
    progress.stage("Stopping")
    if not targets:
        return result
    with ThreadPoolExecutor(min(parallel(node), len(targets)), "autostop") as pool:
        errors = pool.map(partial(_stop, node, deadline), targets)
        for env, error in zip(targets, errors, strict=True):
            result["failed" if error else "stopped"].append(env.uuid)
            done = len(result["failed"]) + len(result["stopped"])
            progress.advance(done, len(targets), unit="environments")
    return result


def _stop(node: Node, deadline: float, env: Environment) -> VZError | None:
    """Stop one environment in its own way; return why it could not be stopped."""
    try:
        mode = node.registry.config(env).boot.autostop or node.config().ve_stop_mode
        if mode == "suspend" and _suspended(node, env):
            (env.home / ".running").touch()
            return None
        left = max(1.0, deadline - time.monotonic())
        options = StopOptions(timeout=min(StopOptions().timeout, left))
        lifecycle.stop(node, env.uuid, options=options)
        (env.home / ".running").touch()  # it ran when the node went down: ONBOOT=auto starts it
    except VZError as error:
        logger.warning("%s: could not be stopped: %s", env.name, error)
        node.publish("ve-autostop-failed", env, message=error.message)
        return error
    return None


def _suspended(node: Node, env: Environment) -> bool:
    """Suspend one, ending what people run in it by exec and enter; whether that went well."""
    try:
        suspend.suspend(node, env.uuid, options=SuspendOptions(hang_up=True))
    except VZError as error:
        logger.warning("%s: it is stopped, as it cannot be suspended: %s", env.name, error)
        return False
    return True


def machine_goes_down() -> bool:
    """Whether the whole machine shuts down (systemd says so), not only this daemon."""
    if not Path("/run/systemd/system").is_dir():
        return False
    try:
        answer = run(["systemctl", "is-system-running"], check=False, timeout=10)
    except (CommandFailed, Timeout, OSError):
        return False
    return answer.stdout.strip() == "stopping"
