"""The daemon as the libvirt gateway sees it: questions and tasks, and the events of the bus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

from pyvz.daemon.access import Caller
from pyvz.daemon.events import Subscription
from pyvz.daemon.services import Services
from pyvz.daemon.tasks import Work
from pyvz.gateway.office import Events, Peer
from pyvz.gateway.server import Gateway
from pyvz.model.task import Progress
from pyvz.operations.node import Node

T = TypeVar("T")

logger = logging.getLogger(__name__)


class GatewayOffice:
    """Implements gateway.office.Office."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def node(self) -> Node:
        """The node."""
        return self._services.node

    async def query(self, function: Callable[[], T]) -> T:
        """Run a question in a thread."""
        return cast(T, await self._services.tasks.query(function))

    async def work(self, verb: str, ref: str, run: Callable[[Progress], T], peer: Peer) -> T:
        """Run work as a task; who no longer waits for it calls it off."""
        work = Work(verb, ref, run, origin="libvirt", cancellable=True)
        caller = Caller(peer.pid, peer.uid, frozenset())
        task = self._services.tasks.start(work, caller)
        try:
            return cast(T, await task.outcome)
        finally:
            task.cancel()

    def subscribe(self) -> Events:
        """Return a queue of everything that happens from now on."""
        return self._services.events.subscribe(replay=False)

    def unsubscribe(self, events: Events) -> None:
        """Give such a queue back."""
        self._services.events.unsubscribe(cast(Subscription, events))


async def serve(services: Services) -> Gateway | None:
    """Open the endpoint for libvirt's clients; the node is served without it when it cannot be."""
    gateway = Gateway(GatewayOffice(services))
    try:
        await gateway.start()
    except OSError as error:
        logger.warning("libvirt's clients are not served: %s", error)
        await gateway.close()
        return None
    return gateway
