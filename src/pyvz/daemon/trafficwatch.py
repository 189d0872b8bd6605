"""Writes the counters of traffic down now and then, for the case that the node crashes."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.operations import traffic

PERIOD = 300.0  # seconds of traffic that a crash of the node may lose

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    while True:
        await asyncio.sleep(PERIOD)
        try:
            await asyncio.to_thread(traffic.save_all, services.node)
        except (VZError, OSError):
            logger.exception("writing the counters of traffic down")
