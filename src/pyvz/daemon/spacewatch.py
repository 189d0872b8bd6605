"""Runs the watches of disks: only while there is something to watch, else waits for an event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.operations import diskwatch, spacewatch
from pyvz.operations.spacewatch import SLOWEST

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Look at pools and disks for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    watches = (spacewatch.Watch(services.node), diskwatch.Watch(services.node))
    subscription = services.events.subscribe(replay=False)
    try:
        while True:
            try:
                delay = await asyncio.to_thread(_look, watches)
            except (VZError, OSError):
                logger.exception("watching pools and disks")
                delay = SLOWEST
            if delay is not None:
                await asyncio.sleep(delay)
            else:
                # What runs can only change with an event.
                await subscription.next()
    finally:
        services.events.unsubscribe(subscription)


def _look(watches: Sequence[spacewatch.Watch | diskwatch.Watch]) -> float | None:
    """Return the seconds until one of them must look again, None when none must."""
    return min((delay for each in watches if (delay := each.look()) is not None), default=None)
