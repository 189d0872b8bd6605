"""Runs the tuning of KSM: in rounds while a container takes part, else it waits for a start."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.memory.samepage import PERIOD
from pyvz.model import event
from pyvz.operations.samepage import Samepage

_WAKES = frozenset({event.START, event.STOP, event.REBOOT, event.RESUME})

logger = logging.getLogger(__name__)


async def watch(services: Services, samepage: Samepage, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    subscription = services.events.subscribe(replay=False)
    try:
        while True:
            try:
                await asyncio.to_thread(samepage.look)
            except (VZError, OSError):
                logger.exception("tuning KSM")
            if samepage.active:
                await asyncio.sleep(PERIOD)
            else:
                while (await subscription.next()).name not in _WAKES:
                    pass
    finally:
        services.events.unsubscribe(subscription)
