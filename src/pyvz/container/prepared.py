"""Inits between their fork and their way to the exec: vzd furnishes their network meanwhile.

Such a child waits for its descriptors (stage.py); the launch's own deadline ends it when nobody
says anything, and the end of its client ends it at once.  It never runs a program of the container.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyvz.container import launch, netns
from pyvz.container.launch import Launch, StepError
from pyvz.container.reply import Reply


class _Waiting(NamedTuple):
    made: Launch
    request: Mapping[str, Any]
    client: int

    def end(self, why: str) -> None:
        self.made.fail(StepError("starting", 0, why))


class Prepared:
    """The waiting inits, by the container's uuid."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}

    def add(self, made: Launch, request: Mapping[str, Any], reply: Reply) -> None:
        """Hand the client the way into the network of a child that was forked just now."""
        new = _Waiting(made, request, reply.client.number)
        try:
            with launch.step("opening its network"):
                fds = netns.open_network(made.pid)
        except BaseException:
            new.end("its network cannot be opened")
            raise
        self._waiting[str(request["uuid"])] = new
        reply.ok({"pid": made.pid, "started": made.started}, fds)

    def proceed(self, uuid: str, reply: Reply) -> None:
        """Let it go on; REPLY is answered when the init has been executed or has failed."""
        found = self._take(uuid)
        found.made.reply = reply
        if not found.made.ended:  # else its deadline has killed it, and it is about to be reaped
            launch.proceed(found.made, found.request)

    def abandon(self, uuid: str) -> None:
        """End one."""
        self._take(uuid).end("given up")

    def forget(self, uuid: str) -> None:
        """It has been executed or has ended."""
        self._waiting.pop(uuid, None)

    def hung_up(self, client: int) -> None:
        """End those of a client that has gone."""
        for each in [each for each in self._waiting.values() if each.client == client]:
            each.end("its client has gone")

    def _take(self, uuid: str) -> _Waiting:
        found = self._waiting.pop(uuid, None)
        if found is None:
            raise StepError("starting", 0, "the child died while its network was made")
        return found
