"""Looks whether cards with DHCP have got an address, some time after a start or a change."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.model import event
from pyvz.operations import leasewatch

_WAKES = frozenset({event.START, event.REBOOT, event.RESUME, event.CONFIG})

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    subscription = services.events.subscribe(replay=False)
    waiting: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            told = await subscription.next()
            if told.name not in _WAKES:
                continue
            if told.uuid in waiting:
                waiting[told.uuid].cancel()
            waiting[told.uuid] = asyncio.create_task(_later(services, told.uuid))
            waiting = {uuid: task for uuid, task in waiting.items() if not task.done()}
    finally:
        services.events.unsubscribe(subscription)
        for task in waiting.values():
            task.cancel()


async def _later(services: Services, uuid: str) -> None:
    """Look once, when the guest has had time enough."""
    seconds = leasewatch.patience(services.node)
    if not seconds:
        return
    await asyncio.sleep(seconds)
    try:
        await asyncio.to_thread(leasewatch.look, services.node, uuid)
    except (VZError, OSError) as error:  # it has stopped, or was deleted
        logger.debug("%s: its leases were not looked at: %s", uuid, error)
    except Exception:
        logger.exception("%s: looking at its leases: a defect", uuid)
