"""The interface io.pyvz.Node: the node itself, its tasks and events, and the daemon.

No `from __future__ import annotations` here: see replies.py.
"""

from collections.abc import AsyncIterator
from typing import Any, TypedDict, cast

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon import report
from pyvz.daemon.autostart import autostop
from pyvz.daemon.calls import Api, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.errors import InvalidState
from pyvz.operations import query
from pyvz.operations.node import Node as NodeParts
from pyvz.version import VERSION


class TaskReply(TypedDict):
    """A task that runs.  started: seconds since 1970; done and total: how far its stage is."""

    id: int
    verb: str
    ref: str
    origin: str
    uid: int
    pid: int
    started: float
    state: str
    cancellable: bool
    stage: str
    done: int | None
    total: int | None


class EventValue(TypedDict):
    """Something that happened.  time: seconds since 1970; uuid: of the environment, or empty."""

    time: float
    name: str
    uuid: str
    data: dict[str, Any]


class EventReply(TypedDict):
    """One event."""

    event: EventValue


class Autostopped(TypedDict):
    """UUIDs of the environments that were stopped, and of those that could not be."""

    stopped: list[str]
    failed: list[str]


class Node(Api, VarlinkInterface, name="io.pyvz.Node"):
    """The node: what it is, what runs on it, what happens."""

    @varlinkmethod(return_parameter="version")
    def Ping(self) -> str:
        """Return the daemon's version."""
        return VERSION

    @varlinkmethod(return_parameter="info", allow_foreign=True)
    async def Info(self, *, full: bool = False) -> object:
        """Return what the machine is and can do."""
        return await self.query(query.node_info, full=full)

    @varlinkmethod(delay_generator=False, allow_foreign=True)
    async def Events(self, *, replay: bool = False) -> AsyncIterator[EventReply]:
        """Yield events without end.  replay: first those that are remembered (the last 1000).
        An event named "lost" with a `count` tells that this client was too slow for some.

        Call it with `more`.
        """
        subscription = self.services.events.subscribe(replay=replay)
        try:
            while True:
                event = await subscription.next()
                yield {"event": cast(EventValue, event.as_json())}
        finally:
            self.services.events.unsubscribe(subscription)

    @varlinkmethod(return_parameter="tasks")
    def Tasks(self) -> list[TaskReply]:
        """Return what the daemon is working at."""
        return [cast(TaskReply, task.describe()) for task in self.services.tasks.running()]

    @varlinkmethod
    def CancelTask(self, *, id: int) -> Empty:
        """Call a task off; it undoes what it had done, and its caller gets the error Cancelled."""
        self.services.tasks.cancel(id)
        return {}

    @varlinkmethod
    def Shutdown(self, *, force: bool = False) -> Empty:
        """End the daemon; environments run on, and the next command starts it again.
        Refused while tasks run, unless forced: those that can be are then called off and undone,
        the others get 30 s, and what is left is finished or undone when the daemon is back.
        """
        running = self.services.tasks.running()
        if running and not force:
            raise InvalidState(
                f"vzd is working at {len(running)} tasks",
                details="\n".join(f"{each.work.verb} {each.work.ref}" for each in running),
                hint="Wait for them, or use --force.",
            )
        self.services.stop()
        return {}

    @streaming(Autostopped)
    def Autostop(self, node: NodeParts) -> Work:
        """Stop every environment, as for the shutdown of the node, each in its own way."""
        return Work("autostop", "", lambda task: autostop(node, task), dict)

    @varlinkmethod(return_parameter="report")
    async def ProblemReport(self) -> str:
        """Return a text for those who help: versions, features, states, tasks, events, logs."""
        tasks = [task.describe() for task in self.services.tasks.running()]
        events = [event.as_json() for event in self.services.events.history()]
        text: str = await self.query(report.compose, tasks, events)
        return text
