"""The daemon as the libvirt gateway sees it: questions and tasks, and the events of the bus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from pyvz.daemon.access import Caller
from pyvz.daemon.events import Subscription
from pyvz.daemon.services import Services
from pyvz.daemon.tasks import State, Task, Work
from pyvz.gateway.office import Events, Job, Peer
from pyvz.gateway.server import Gateway
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.operations.roster import Roster

T = TypeVar("T")
REMEMBERED = 200  # tasks that have ended

logger = logging.getLogger(__name__)


class GatewayOffice:
    """Implements gateway.office.Office."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._roster = Roster(services.node)
        self._ended: deque[Job] = deque(maxlen=REMEMBERED)
        self.on_end(self._ended.appendleft)

    @property
    def node(self) -> Node:
        """The node."""
        return self._services.node

    @property
    def roster(self) -> Roster:
        """What is known of the node's environments."""
        return self._roster

    async def query(self, function: Callable[[], T]) -> T:
        """Run a question in a thread."""
        return cast(T, await self._services.tasks.query(function))

    async def work(self, verb: str, ref: str, run: Callable[[Progress], T], peer: Peer) -> T:
        """Run work as a task; who no longer waits for it calls it off."""
        task = self._started(verb, ref, run, peer)
        try:
            return cast(T, await task.outcome)
        finally:
            task.cancel()

    async def begin(
        self,
        verb: str,
        ref: str,
        run: Callable[[Progress, Callable[[], None]], object],
        peer: Peer,
    ) -> None:
        """Begin work that goes on without who asked for it."""
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def told() -> None:
            loop.call_soon_threadsafe(begun.set)

        task = self._started(verb, ref, lambda progress: run(progress, told), peer)
        waiting = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait({task.outcome, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            waiting.cancel()
        if not begun.is_set():
            await task.outcome

    def _started(self, verb: str, ref: str, run: Callable[[Progress], object], peer: Peer) -> Task:
        work = Work(verb, ref, run, origin="libvirt", cancellable=True)
        return self._services.tasks.start(work, Caller(peer.pid, peer.uid, frozenset()))

    def jobs(self) -> Sequence[Job]:
        """Return the tasks that are under way, oldest first."""
        return [_job(each) for each in self._services.tasks.running()]

    def ended(self) -> Sequence[Job]:
        """Return tasks that have ended, newest first."""
        return tuple(self._ended)

    def on_end(self, listener: Callable[[Job], None]) -> None:
        """Have the listener called for each task that ends."""
        self._services.tasks.on_end.append(lambda task: listener(_job(task)))

    def cancel(self, job: Job) -> None:
        """Call one off; raises NotFound, InvalidState."""
        self._services.tasks.cancel(job.number)

    def subscribe(self) -> Events:
        """Return a queue of everything that happens from now on."""
        return self._services.events.subscribe(replay=False)

    def unsubscribe(self, events: Events) -> None:
        """Give such a queue back."""
        self._services.events.unsubscribe(cast(Subscription, events))


def _job(task: Task) -> Job:
    so_far, age = task.current, time.time() - task.created
    amounts = (so_far.done, so_far.total, so_far.unit)
    succeeded = {State.DONE: True, State.FAILED: False}.get(task.state)
    return Job(task.id, task.work.verb, task.work.ref, age, *amounts, succeeded)


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
