"""Keeps lxcfs alive: its end wakes the watch at once, a hang is found by asking now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from pyvz.daemon.events import Subscription
from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.linux.lxcfs import Daemon
from pyvz.linux.process import Pidfd
from pyvz.model import event
from pyvz.operations.figures import Figures

PERIOD = 2.0  # seconds between two questions; without an lxcfs only an event is waited for

logger = logging.getLogger(__name__)


async def watch(services: Services, figures: Figures, start: asyncio.Task[None]) -> None:
    """Do it for as long as the daemon lives."""
    subscription = services.events.subscribe(replay=False)
    started = asyncio.create_task(_started(subscription))
    try:
        while True:
            try:
                await asyncio.to_thread(figures.look)
            except (VZError, OSError):
                logger.exception("looking after lxcfs")
            patience = None if figures.idle else PERIOD
            async with _end_of(figures.daemon) as ended:
                waits = {started, ended} if start.done() else {started, ended, start}
                await asyncio.wait(waits, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started = asyncio.create_task(_started(subscription))
    finally:
        started.cancel()
        services.events.unsubscribe(subscription)


async def _started(subscription: Subscription) -> None:
    while (await subscription.next()).name not in {event.START, event.REBOOT, event.RESUME}:
        pass


@asynccontextmanager
async def _end_of(daemon: Daemon | None) -> AsyncIterator[asyncio.Future[None]]:
    """Yield a future that is done when the process has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    pidfd = None
    with suppress(OSError):
        pidfd = None if daemon is None else Pidfd(*daemon)
    if pidfd is None and daemon is not None:
        ended.set_result(None)
    if pidfd is not None:
        loop.add_reader(pidfd.fd, lambda: None if ended.done() else ended.set_result(None))
    try:
        yield ended
    finally:
        if pidfd is not None:
            loop.remove_reader(pidfd.fd)
            pidfd.close()
        ended.cancel()
