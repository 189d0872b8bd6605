"""How hard KSM works: as hard as it pays, and not at all when it does not (pure).

Asked once in a while with fresh counters, the controller answers with the knobs for the time to
come.  It weighs what was saved since the last time against the CPU time that it took:

    LOOKING ──> two whole passes over the memory (a page is merged in the second at the earliest):
       ^        faster (twice) each round, up to a share of one CPU
       │  JUDGING: saved much per CPU second:  faster; little: slower (half)
       │           nothing for two more passes at the slowest: RESTING
       └── something has started, or the rest is over ──┘

What is merged stays merged while it rests.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvz.linux.ksm import Counters, Knobs
from pyvz.units import MIB

GOOD = 64 * MIB  # bytes saved per CPU second that are worth more of it
POOR = 4 * MIB
SLOWEST, FASTEST = 100, 12800  # pages in one turn
PAUSE = 20  # milliseconds between turns, the kernel's own default
SHARE = 0.25  # of one CPU, at most
PATIENCE = 2  # passes over all memory without a gain, then it rests
REST = 600.0  # seconds
PERIOD = 10.0  # seconds between two rounds


class Verdict(NamedTuple):
    """The knobs for the time to come, and why."""

    knobs: Knobs
    why: str


class Controller:
    """Remembers the last counters and how hard KSM works now."""

    def __init__(self) -> None:
        self._pages = SLOWEST
        self._last: Counters | None = None
        self._at = 0.0
        self._idle_since = 0  # full scans when something was gained last
        self._judged_from = 0  # full scans from which on it must pay
        self._resting_until = 0.0

    @property
    def resting(self) -> bool:
        """Whether it has stopped because it did not pay."""
        return self._resting_until > 0.0

    def news(self) -> None:
        """Take note that there are new pages to look at: something has started."""
        self._resting_until = 0.0
        if self._last is not None:
            self._look_around(self._last.scans)

    def _look_around(self, scans: int) -> None:
        self._judged_from = self._idle_since = scans + PATIENCE

    def step(self, now: float, counters: Counters) -> Verdict:
        """Return how hard to work from NOW (seconds of a clock that only goes on)."""
        last, then = self._last, self._at
        self._last, self._at = counters, now
        if last is None:
            self._look_around(counters.scans)
            return self._working("begun")
        if self.resting:
            if now < self._resting_until:
                return Verdict(Knobs(0, self._pages, PAUSE), "resting")
            self.news()
            return self._working("looking again after a rest")
        gained, cpu = counters.saved - last.saved, max(counters.cpu - last.cpu, 0.0)
        if counters.scans < self._judged_from:
            if cpu / max(now - then, 0.001) < SHARE / 2:
                self._pages = min(self._pages * 2, FASTEST)
            return self._working("looking at all pages")
        if gained > POOR * cpu:
            self._idle_since = counters.scans
        elif self._pages == SLOWEST and counters.scans - self._idle_since >= PATIENCE:
            self._resting_until = now + REST
            return Verdict(Knobs(0, self._pages, PAUSE), "it does not pay: resting")
        return self._paced(gained, cpu, max(now - then, 0.001))

    def _paced(self, gained: int, cpu: float, seconds: float) -> Verdict:
        if cpu / seconds > SHARE:
            self._pages = max(self._pages // 2, SLOWEST)
            return self._working("slower: it takes too much CPU")
        if gained >= GOOD * cpu and gained > 0:
            self._pages = min(self._pages * 2, FASTEST)
            return self._working("faster: it pays")
        if gained <= POOR * cpu:
            self._pages = max(self._pages // 2, SLOWEST)
            return self._working("slower: little is found")
        return self._working("as before")

    def _working(self, why: str) -> Verdict:
        return Verdict(Knobs(1, self._pages, PAUSE), why)
