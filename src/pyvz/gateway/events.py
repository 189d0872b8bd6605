"""Events of the node, sent to those of libvirt's clients who asked for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pyvz.errors import VZError
from pyvz.gateway import domain, domainevents, objectevents
from pyvz.gateway.calls_job import OPERATIONS
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domainevents import Told
from pyvz.gateway.office import Job, Office
from pyvz.model.event import Event

if TYPE_CHECKING:
    from pyvz.gateway.connection import Client

DOMAIN: Final = "domain"

logger = logging.getLogger(__name__)


class Relay:
    """Hands the events of the bus on to the clients."""

    def __init__(self, office: Office, clients: Collection[Client]) -> None:
        self._office = office
        self._clients = clients
        self._task: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        office.on_end(self._ended)

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        events = self._office.subscribe()
        try:
            while True:
                event = await events.next()
                try:
                    objectevents.hand_on(event, self._clients)
                    await self._hand_on(event)
                except Exception:  # one event that cannot be told is no reason to tell no more
                    logger.exception("libvirt event of %s", event)
        finally:
            self._office.unsubscribe(events)

    async def _hand_on(self, event: Event) -> None:
        messages = list(domainevents.told(event))
        if not event.uuid or not self._clients or not messages:
            return
        key, messages = await self._office.query(lambda: _addressed(self._office, event, messages))
        self._tell(key, messages)

    def _ended(self, job: Job) -> None:
        """Take note of a task's end; who it was done to is looked up in a thread."""
        if self._clients and job.verb in OPERATIONS:
            task = asyncio.create_task(self._tell_of_end(job))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell_of_end(self, job: Job) -> None:
        with suppress(VZError):  # it went to another node, or away
            found = await self._office.query(lambda: domain.lookup(self._office.node, job.ref))
            self._tell(found.key, [domainevents.ended(job)])

    def _tell(self, key: dict[str, Any], messages: Sequence[Told]) -> None:
        for each in messages:
            body = {**each.body, "dom": key}
            message = {"msg": body} if each.nested else body
            for client in tuple(self._clients):
                client.callbacks.tell(DOMAIN, each.number, key["uuid"], each.message, message)


def _addressed(
    office: Office, event: Event, messages: list[Told]
) -> tuple[dict[str, Any], list[Told]]:
    """Return the domain of an event, with the number that it has now, and what is told."""
    with suppress(VZError):
        found = domain.lookup(office.node, event.uuid)
        told = domainevents.of_disks(messages, found) if domain.is_machine(found) else messages
        return found.key, told
    name = str(event.data.get("name", event.uuid))
    return {"name": name, "uuid": event.uuid, "id": domain.OFF}, messages


async def connect_domain_event_callback_register_any(
    call: Call, arguments: dict[str, Any]
) -> Values:
    """Tell the client of one kind of event from now on; kinds that never happen are fine."""
    dom = arguments["dom"]
    uuid = dom["uuid"] if dom is not None else None
    return {"callbackID": call.client.callbacks.add(DOMAIN, arguments["eventID"], uuid)}


async def connect_domain_event_callback_deregister_any(
    call: Call, arguments: dict[str, Any]
) -> None:
    """Tell it no more."""
    call.client.callbacks.remove(DOMAIN, arguments["callbackID"])
