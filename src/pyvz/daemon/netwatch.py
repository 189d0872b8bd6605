"""Looks after the networks of the node: DHCP servers that have died, forwards whose address came.

Every few seconds, in a thread; on a node without virtual networks that is one look at a directory.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pyvz.errors import VZError
from pyvz.operations import virtualnet

if TYPE_CHECKING:
    from pyvz.daemon.services import Services

INTERVAL = 5.0  # seconds

logger = logging.getLogger(__name__)


async def watch(services: Services, first: asyncio.Task[None]) -> None:
    """Look every INTERVAL seconds, once FIRST (the recovery) has ended."""
    await asyncio.wait({first})
    keeper = virtualnet.Keeper(services.node)
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            await asyncio.to_thread(keeper.look)
        except (VZError, OSError) as error:
            logger.warning("virtual networks: %s", error)
        except Exception:
            logger.exception("virtual networks: a defect")
