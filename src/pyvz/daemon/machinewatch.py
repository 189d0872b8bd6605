"""Hears of the ends and mishaps of virtual machines, and looks after those that stand still.

Ends and events come from QEMU's monitors, handled in threads of the machines' own.  Every few
seconds the machines that stopped by themselves are looked at: one whose disk was full goes on when
there is space again, one whose guest crashed is restarted when its configuration says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from pyvz.errors import VZError
from pyvz.model.environment import Kind
from pyvz.operations import machine, machineevents
from pyvz.store import lease
from pyvz.store.state import RunState

if TYPE_CHECKING:
    from pyvz.daemon.services import Services
    from pyvz.operations.node import Node
    from pyvz.vm.runtime import End

INTERVAL = 3.0  # seconds
IDLE = 15.0  # while no machine runs
OTHERS = 120.0  # seconds for an operation under way to finish

logger = logging.getLogger(__name__)


def listen(node: Node) -> None:
    """Begin to hear; machines that an earlier vzd started are connected to."""

    def ended(end: End) -> None:
        try:
            if not _done_by_others(node, end):
                machine.ended(node, end)
        except VZError as error:
            logger.warning("%s: after its end: %s", end.uuid, error)

    node.machines.on_end(ended)
    node.machines.on_event(machineevents.Listener(node))
    node.machines.adopt()
    if any(env.kind == Kind.VM for env in node.registry.environments()):
        node.machines.prepare()


def _done_by_others(node: Node, end: End) -> bool:
    """Whether a stop under way cleaned up, so that nothing is left to do.

    It is awaited without queueing for the lease: else the user's next command would find the
    machine locked for nothing.
    """
    deadline = time.monotonic() + OTHERS
    while lease.holder(node.paths, end.uuid) and time.monotonic() < deadline:
        time.sleep(0.02)
    state = RunState.load(node.paths, end.uuid)
    return state is None or state.pid != end.pid


async def watch(services: Services, first: asyncio.Task[None]) -> None:
    """Look every few seconds, once FIRST (the recovery) has ended."""
    await asyncio.wait({first})
    busy = True
    while True:
        try:
            busy = await asyncio.to_thread(machineevents.look, services.node)
        except (VZError, OSError) as error:
            logger.warning("virtual machines: %s", error)
        except Exception:
            logger.exception("virtual machines: a defect")
        await asyncio.sleep(INTERVAL if busy else IDLE)
