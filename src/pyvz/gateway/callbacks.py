"""What a client wants to hear of: callbacks, each with a number, and an object it is about or none.

Clients register an event id of a kind (domain, network, pool, node device) and get the number that
comes back in every message (reference/libvirt-rpc.md, 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pyvz.gateway import failure
from pyvz.gateway.failure import Failure

LIMIT: Final = 1000  # of one client


class _Callback(NamedTuple):
    kind: str
    event: int
    uuid: str | None


class Callbacks:
    """The callbacks of one client."""

    def __init__(self, tell: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._tell = tell
        self._wanted: dict[int, _Callback] = {}
        self._last = 0

    def add(self, kind: str, event: int, uuid: str | None) -> int:
        """Register a callback for an event id, about one object or all; returns its number."""
        if len(self._wanted) >= LIMIT:
            raise Failure(failure.FAILED, f"More than {LIMIT} callbacks of one connection")
        self._last += 1
        self._wanted[self._last] = _Callback(kind, event, uuid)
        return self._last

    def remove(self, kind: str, number: int) -> None:
        """Forget a callback; raises Failure when there is none of that kind and number."""
        found = self._wanted.get(number)
        if found is None or found.kind != kind:
            raise Failure(failure.INVALID_ARGUMENT, f"There is no {kind} callback {number}")
        del self._wanted[number]

    def tell(self, kind: str, event: int, uuid: str, message: str, body: Mapping[str, Any]) -> None:
        """Send MESSAGE once for every callback that wants it."""
        for number, each in tuple(self._wanted.items()):
            if (each.kind, each.event) == (kind, event) and each.uuid in (None, uuid):
                self._tell(message, {"callbackID": number, **body})
