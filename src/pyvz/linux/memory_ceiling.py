"""memory.high for control group v1: a thread that watches the use of groups and takes the rest.

The kernel tells through an eventfd when the use of a group crosses a threshold
(cgroup-v1/memory.rst, section 9).  Then what is above is taken back (`MemoryV1.reclaim`), so page
cache cannot grow above the ceiling for longer than that takes, while the group's true limit stays
where its owner has put it: memory that cannot be taken may grow at any time, and nobody is killed.

Nothing of this outlives vzd: when it dies, the groups simply have no ceiling.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pyvz.linux import cgroupfs
from pyvz.units import MIB, PAGE_SIZE, UNLIMITED

log = logging.getLogger(__name__)

_MOST = 16 * MIB  # taken below the ceiling, so that it is not crossed again at once
_REST = 1.0  # seconds in which a group is left alone that had nothing to give, time and again
_PAUSE = 0.02  # seconds between two times that one group gives back


class _Ceiling:
    """One group: its threshold, the event for it, and when it may be asked again."""

    def __init__(self, path: str, high: int) -> None:
        self.path = path
        self.high = high
        self.until = 0.0
        self.failures = 0
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            usage = os.open(f"{path}/memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)
            try:
                cgroupfs.write(f"{path}/cgroup.event_control", f"{self.event} {usage} {high}")
            finally:
                os.close(usage)
        except BaseException:
            os.close(self.event)
            raise


class Ceilings:
    """The ceilings of a node.  give_back(path, bytes) -> bytes that were given."""

    def __init__(self, give_back: Callable[[str, int], int]) -> None:
        self._give_back = give_back
        self._guard = threading.Lock()
        self._by_path: dict[str, _Ceiling] = {}
        self._by_event: dict[int, _Ceiling] = {}
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.EPOLLIN)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ceilings", daemon=True)
        self._thread.start()

    def set(self, path: str, high: int) -> None:
        """Give a group a ceiling, another one, or (UNLIMITED) none."""
        high = high if high >= UNLIMITED else high // PAGE_SIZE * PAGE_SIZE
        with self._guard:
            old = self._by_path.get(path)
            if old is not None and old.high == high:
                return
            if old is not None:
                self._forget(old)
            if high >= UNLIMITED or self._closed:
                return
            made = _Ceiling(path, high)
            self._by_path[path] = made
            self._by_event[made.event] = made
            self._poll.register(made.event, select.EPOLLIN)
        os.eventfd_write(self._wake, 1)  # it may be above already

    def close(self) -> None:
        """Take all ceilings away and end the thread."""
        with self._guard:
            self._closed = True
            for ceiling in list(self._by_path.values()):
                self._forget(ceiling)
        os.eventfd_write(self._wake, 1)
        self._thread.join(10)

    def _forget(self, ceiling: _Ceiling) -> None:
        del self._by_path[ceiling.path]
        del self._by_event[ceiling.event]
        with suppress(OSError):
            self._poll.unregister(ceiling.event)
        os.close(ceiling.event)

    def _run(self) -> None:
        pending: set[str] = set()
        while not self._closed:
            for event, _ in self._poll.poll(_PAUSE if pending else None):
                with self._guard, suppress(OSError):
                    os.eventfd_read(event)
                    found = self._by_event.get(event)
                    pending.update([found.path] if found else self._by_path)
            for path in tuple(pending):
                if not self._settle(path):
                    pending.discard(path)
        self._poll.close()
        os.close(self._wake)

    def _settle(self, path: str) -> bool:
        """Bring one group below its ceiling; return whether it must be looked at again."""
        with self._guard:
            ceiling = self._by_path.get(path)
        if ceiling is None:
            return False
        now = time.monotonic()
        if now < ceiling.until:
            return True
        used = cgroupfs.read_int(f"{path}/memory.usage_in_bytes")
        if used is None:  # it has ended
            with self._guard:
                if self._by_path.get(path) is ceiling:
                    self._forget(ceiling)
            return False
        if used <= ceiling.high:
            return False
        try:
            got = self._give_back(path, used - ceiling.high + min(ceiling.high // 8, _MOST))
        except OSError as error:
            log.debug("%s: %s", path, error)
            got = 0
        # A reclaim may come to nothing for a moment only, while the pages are in use.
        ceiling.failures = 0 if got > 0 else ceiling.failures + 1
        ceiling.until = time.monotonic() + min(_PAUSE * 2 ** min(ceiling.failures, 8), _REST)
        return True
