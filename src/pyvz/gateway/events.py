"""Events of the node as libvirt's clients know them, sent to whoever asked for them.

Of the bus (model/event.py) a life-cycle event is a pair of numbers (reference/libvirt-rpc.md, 3.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pyvz.errors import VZError
from pyvz.gateway import domain, objectevents
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.office import Office
from pyvz.model.event import Event

if TYPE_CHECKING:
    from pyvz.gateway.connection import Client

DOMAIN: Final = "domain"
LIFECYCLE: Final = 0
REBOOT: Final = 1

# name on the bus -> (event, detail) of the life cycle
LIFE: Final[Mapping[str, tuple[int, int]]] = {
    "ve-create": (0, 0),
    "ve-register": (0, 0),
    "ve-config": (0, 1),
    "ve-rename": (0, 2),
    "ve-delete": (1, 0),
    "ve-unregister": (1, 0),
    "ve-start": (2, 0),
    "ve-pause": (3, 0),
    "ve-suspend": (5, 4),
}
# Gone to another node, come from one; of one that was live on the way, and of a stopped one.
_MOVED: Final = {"ve-migrated": [(5, 3), (1, 0)], "ve-migrate": [(0, 0), (2, 1)]}
_MOVED_OFF: Final = {"ve-migrated": [(1, 0)], "ve-migrate": [(0, 0)]}
_STOPPED: Final = {"killed": (5, 1), "oom": (5, 2)}  # by the reason; (5, 0): shut down
_RESUMED: Final = {"suspended": (2, 2)}  # by what it was; (4, 0): unpaused

logger = logging.getLogger(__name__)


def life(event: Event) -> Sequence[tuple[int, int]]:
    """Return what a client is told of the life cycle: event and detail, mostly one, or none."""
    if event.name == "ve-stop":
        return [_STOPPED.get(str(event.data.get("reason", "")), (5, 0))]
    if event.name == "ve-resume":
        return [_RESUMED.get(str(event.data.get("from", "")), (4, 0))]
    if event.name in _MOVED:
        moved = _MOVED if event.data.get("state") == "running" else _MOVED_OFF
        return moved[event.name]
    pair = LIFE.get(event.name)
    return [pair] if pair else []


class Relay:
    """Hands the events of the bus on to the clients."""

    def __init__(self, office: Office, clients: Collection[Client]) -> None:
        self._office = office
        self._clients = clients
        self._task: asyncio.Task[None] | None = None

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
        pairs = life(event)
        if not event.uuid or not self._clients or not (pairs or event.name == "ve-reboot"):
            return
        key = await self._office.query(lambda: _key(self._office, event))
        for client in tuple(self._clients):
            if event.name == "ve-reboot":
                self._tell(client, REBOOT, "domain_event_callback_reboot", {"dom": key})
            for number, detail in pairs:
                message = {"dom": key, "event": number, "detail": detail}
                self._tell(client, LIFECYCLE, "domain_event_callback_lifecycle", message)

    def _tell(self, client: Client, number: int, name: str, message: dict[str, Any]) -> None:
        uuid = message["dom"]["uuid"]
        client.callbacks.tell(DOMAIN, number, uuid, name, {"msg": message})


def _key(office: Office, event: Event) -> dict[str, Any]:
    """Return the domain that an event is about, with the number that it has now."""
    with suppress(VZError):
        return domain.lookup(office.node, event.uuid).key
    name = str(event.data.get("name", event.uuid))
    return {"name": name, "uuid": event.uuid, "id": domain.OFF}


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
