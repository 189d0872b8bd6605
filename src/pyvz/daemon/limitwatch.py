"""Looks at the counters of limits while containers run, else waits for a start."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.model import event
from pyvz.operations.limitwatch import LimitWatch

PERIOD = 5.0  # seconds
_WAKES = frozenset({event.START, event.REBOOT, event.RESUME})

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    limits = LimitWatch(services.node)
    subscription = services.events.subscribe(replay=False)
    try:
        while True:
            busy = True
            try:
                busy = await asyncio.to_thread(limits.look)
            except (VZError, OSError):
                logger.exception("looking at the counters of limits")
            if busy:
                await asyncio.sleep(PERIOD)
            else:
                while (await subscription.next()).name not in _WAKES:
                    pass
    finally:
        services.events.unsubscribe(subscription)
