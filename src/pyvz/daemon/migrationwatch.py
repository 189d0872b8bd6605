"""Asks about environments whose migration broke off in the moment of the decision, again and again.

On a node without any that is one look at a directory a minute.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from pyvz.errors import VZError
from pyvz.operations import migrate

if TYPE_CHECKING:
    from pyvz.daemon.services import Services

PERIOD = 60.0  # seconds
SOON = 5.0  # seconds, while there are any

logger = logging.getLogger(__name__)


async def watch(services: Services, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives, once `start` has ended."""
    await asyncio.wait({start})
    while True:
        left = True
        try:
            left = await asyncio.to_thread(migrate.retry, services.node)
        except (VZError, OSError):
            logger.exception("asking about migrations in doubt")
        except Exception:
            logger.exception("asking about migrations in doubt: a defect")
        await asyncio.sleep(SOON if left else PERIOD)
