"""Looks after what firewalls of others do to our networks, whenever rules of the node change."""

from __future__ import annotations

import asyncio
import logging

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.linux.nftevents import Events
from pyvz.operations import nodefirewall

SETTLING = 0.2  # seconds after a change: one follows another
SHARE = 20  # of the time that it takes to list rules, until that is done again

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    try:
        events = Events(f"{services.node.paths.instance}-")
    except (VZError, OSError) as error:
        logger.warning("firewalls of others are not watched: %s", error)
        return
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if events.drain():
            changed.set()

    loop.add_reader(events.fileno(), heard)
    watching = nodefirewall.Watch(services.node)
    try:
        while True:
            changed.clear()
            await _look(watching)
            await changed.wait()
            await asyncio.sleep(max(SETTLING, SHARE * watching.seconds))
    finally:
        loop.remove_reader(events.fileno())
        events.close()


async def _look(watching: nodefirewall.Watch) -> None:
    try:
        await asyncio.to_thread(watching.look)
    except (VZError, OSError) as error:
        logger.warning("firewalls of others: %s", error)
    except Exception:
        logger.exception("firewalls of others: a defect")
