"""What the gateway needs of the daemon that it lives in; a Protocol, so that it depends on none.

Questions and work run in threads of the daemon; work is a task that `prlsrvctl` and the log show
like that of any other face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from pyvz.model.event import Event
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.operations.roster import Roster

T = TypeVar("T")


class Peer(NamedTuple):
    """Who is at the other end, as the kernel or the certificate says; uid -1: over the network."""

    uid: int
    pid: int
    name: str = ""


class Job(NamedTuple):
    """A task.  ref: what it is done to, as its caller wrote it; done and total in UNIT (B: bytes),
    None where that is not known.  succeeded: None while it is under way."""

    number: int
    verb: str
    ref: str
    seconds: float
    done: int | None = None
    total: int | None = None
    unit: str = "B"
    succeeded: bool | None = None


class Events(Protocol):
    """One subscriber's queue of events."""

    async def next(self) -> Event:
        """Wait for the next event and return it."""


class Office(Protocol):
    """The daemon, as the gateway sees it."""

    @property
    def node(self) -> Node:
        """The node."""

    @property
    def roster(self) -> Roster:
        """What is known of the node's environments."""

    async def query(self, function: Callable[[], T]) -> T:
        """Run a question in a thread."""

    async def work(self, verb: str, ref: str, run: Callable[[Progress], T], peer: Peer) -> T:
        """Run what changes something as a task, in a thread; a cancelled wait calls it off."""

    async def begin(
        self,
        verb: str,
        ref: str,
        run: Callable[[Progress, Callable[[], None]], object],
        peer: Peer,
    ) -> None:
        """Begin work that goes on without who asked for it; returns once RUN has called what it is
        given, or has ended.  Raises what it raised until then.
        """

    def jobs(self) -> Sequence[Job]:
        """Return the tasks that are under way, oldest first (in the event loop)."""

    def ended(self) -> Sequence[Job]:
        """Return tasks that have ended, newest first, as far as they are remembered."""

    def on_end(self, listener: Callable[[Job], None]) -> None:
        """Have the listener called for each task that ends (in the event loop)."""

    def cancel(self, job: Job) -> None:
        """Call one off (in the event loop); raises NotFound, InvalidState when it cannot be."""

    def subscribe(self) -> Events:
        """Return a queue of everything that happens from now on."""

    def unsubscribe(self, events: Events) -> None:
        """Give such a queue back."""
