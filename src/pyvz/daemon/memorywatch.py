"""Runs the rounds of the memory manager."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from pyvz.daemon.services import Services
from pyvz.errors import BadValue, VZError
from pyvz.operations import vcmmd

AFTER_FAILURE = 30.0  # seconds

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do them, as often as the policy says, while the daemon lives and once `start` has ended.

    Another policy does its first round at once.
    """
    await asyncio.wait({start})
    loop, due = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(due.set)

    services.memory.wake = wake
    with suppress(BadValue):
        vcmmd.set_log_level(services.node.memory.conf().log_level)
    while True:
        try:
            delay = await asyncio.to_thread(services.memory.look)
        except (VZError, OSError):
            logger.exception("a round of the memory manager")
            delay = AFTER_FAILURE
        with suppress(TimeoutError):
            await asyncio.wait_for(due.wait(), delay)
        due.clear()
