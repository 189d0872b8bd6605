"""The event bus: what happened on this node, live, replayed, and kept in a file.

<log>/events.log      one JSON object per line, oldest first
<log>/events.log.1    the file before it, replaced when events.log passes 4 MiB

Any thread may publish; subscribers live in the event loop.  A subscriber that is too slow loses
its oldest events and is told how many, as an event named "lost".
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from pyvz.model.event import FLEETING, Event

HISTORY = 1000  # events that are kept for replay
QUEUE = 500  # events that wait for one slow subscriber
MAX_FILE = 4 << 20  # bytes
LOST = "lost"

logger = logging.getLogger(__name__)


class Subscription:
    """One subscriber's queue; made by Bus.subscribe, used in the event loop only."""

    def __init__(self, events: list[Event], seen: int) -> None:
        self._events: deque[Event] = deque(events)
        self._seen = seen  # the number of the last event that EVENTS covers
        self._lost = 0
        self._changed = asyncio.Event()

    def put(self, number: int, event: Event) -> None:
        """Add an event; the oldest goes when the queue is full."""
        if number <= self._seen:
            return
        if len(self._events) >= QUEUE + HISTORY:
            self._events.popleft()
            self._lost += 1
        self._events.append(event)
        self._changed.set()

    async def next(self) -> Event:
        """Wait for the next event and return it."""
        while True:
            if self._lost:
                lost, self._lost = self._lost, 0
                return Event(time.time(), LOST, "", {"count": lost})
            if self._events:
                return self._events.popleft()
            self._changed.clear()
            await self._changed.wait()


class Bus:
    """Implements operations.node.EventSink: takes events, keeps them and hands them on."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._lock = threading.Lock()  # guards the history and the file
        self._history: deque[Event] = deque(_load(file), maxlen=HISTORY)
        self._last = 0  # the number of the last event that was published
        self._subscribers: set[Subscription] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop in which the subscribers live; before it, events are only kept."""
        self._loop = loop

    def publish(self, event: Event) -> None:
        """Take one event, from any thread; never fails."""
        with self._lock:
            self._last += 1
            number = self._last
            if event.name not in FLEETING:
                self._history.append(event)
                self._write(event)
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the daemon ends
                loop.call_soon_threadsafe(self._hand_on, number, event)

    def subscribe(self, *, replay: bool) -> Subscription:
        """Return a new subscription that begins with the history when `replay` is set."""
        with self._lock:
            events = list(self._history) if replay else []
            seen = self._last
        subscription = Subscription(events, seen)
        self._subscribers.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        self._subscribers.discard(subscription)

    def history(self) -> list[Event]:
        """Return the events that are kept, oldest first."""
        with self._lock:
            return list(self._history)

    def _hand_on(self, number: int, event: Event) -> None:
        for subscription in self._subscribers:
            subscription.put(number, event)

    def _write(self, event: Event) -> None:
        """Append to the file; a full disk loses lines of the file, never an event or the daemon."""
        try:
            with open(self._path, "a", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps(event.as_json(), separators=(",", ":")) + "\n")
                full = file.tell() > MAX_FILE
            if full:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as error:
            if not self._broken:
                logger.warning("%s cannot be written: %s", self._path, error)
            self._broken = True
        else:
            self._broken = False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o640)


def _load(file: Path) -> list[Event]:
    """Return the last events of an earlier daemon; lines that a crash cut short are skipped."""
    lines: deque[str] = deque(maxlen=HISTORY)
    for path in (file.with_name(file.name + ".1"), file):
        with suppress(OSError), path.open(encoding="utf-8", errors="replace") as stream:
            lines.extend(stream)
    events = []
    for line in lines:
        event = _parse(line)
        if event is not None:
            events.append(event)
    return events


def _parse(line: str) -> Event | None:
    try:
        found = json.loads(line)
        data = dict(found["data"])
        return Event(float(found["time"]), str(found["name"]), str(found["uuid"]), data)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
