"""Runs the space watch: only while there is something to watch, else it waits for an event."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.operations.spacewatch import SLOWEST, Watch

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Look at the pools for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    space = Watch(services.node)
    subscription = services.events.subscribe(replay=False)
    try:
        while True:
            try:
                delay = await asyncio.to_thread(space.look)
            except (VZError, OSError):
                logger.exception("watching the space of the pools")
                delay = SLOWEST
            if delay is not None:
                await asyncio.sleep(delay)
            else:
                # What runs can only change with an event.
                await subscription.next()
    finally:
        services.events.unsubscribe(subscription)
