"""pressure: keep everybody's working set, and take from those who do not need what they have.

Linux takes memory from all groups alike: one that reads a backup pushes out what its neighbour
works on all day.  This policy tells them apart by what comes back, and by what was there before:

hot     pages of its working set are read in again (refaults that the kernel activates, or, where it
        does not tell, refaults in the measure in which its cache is used twice).
quiet   nothing is brought in: it finds all it needs.  What it holds then is its *proven* set.
robbed  hot, and below its proven set: it has the first claim.
stray   it goes on bringing in data that it never had, beyond its proven set.  More memory would not
        spare it one read.

When somebody hot finds no free memory, strays give first, down to a window; then the cold ones,
the coldest first: cache that was used once, and a sixteenth of the rest in each round.
Who gave gets a ceiling there (memory.high), so that what was won is not read over.  A cold one that
misses what it gave is hot then; its ceiling rises until it misses nothing: so its true working set
is found by asking, idle pages included.  Strays get ceilings already when memory becomes scarce.

Nobody gives what has no file behind it, and nobody goes below its guarantee.
"""

from __future__ import annotations

from typing import Final

from pyvz.memory.policy.base import Plan, Ve, View
from pyvz.model.memory import Protection, Sample, VeType
from pyvz.units import MIB, UNLIMITED

_LEAST: Final = 0.5  # seconds between two rounds, when somebody lacks memory
_CALM: Final = (1.0, 5.0)  # seconds between two rounds else, by the number of VEs
_MANY: Final = 100.0  # VEs that are looked at in one second at most
_HEAT: Final = 1 * MIB  # bytes per second that come back: from here on it is hot
_STALL: Final = 0.1  # or so much of its time that its tasks wait for what they had
_MEMORY: Final = 0.5  # how much of the heat of the last round counts in this one
_QUIET: Final = 4.0  # so often per second may something be brought in by one that is quiet
_PROOF: Final = 8.0  # seconds after which what a quiet one holds is its proven set
_REST: Final = 10.0  # seconds in which one is left alone that missed what it had given
_LONG: Final = 300.0  # seconds after which a set that was fought for may be idle
_ROOM: Final = 16 * MIB  # what everybody keeps beside what cannot be taken
_WINDOW: Final = 64 * MIB  # what a stray keeps beside that
_FREE: Final = (16 * MIB, 1024 * MIB)  # kept free of the node: a sixteenth, within these


class _Known:
    """What is remembered of one VE.

    heat: bytes per second that came back.  stall: share of the time that it waited.
    calm: seconds that it has been quiet.  proven: what it held when it was that for long.
    rest: seconds to leave it alone.  since: seconds since it was hot.
    """

    __slots__ = ("calm", "ceiling", "heat", "hot", "proven", "quiet", "rest", "since", "stall")

    def __init__(self) -> None:
        self.heat = 0.0
        self.stall = 0.0
        self.hot = False
        self.quiet = False
        self.calm = 0.0
        self.proven = 0
        self.ceiling = UNLIMITED
        self.rest = 0.0
        self.since = _LONG

    def look(self, ve: Ve, seconds: float) -> None:
        """Take note of what a VE did since the last round."""
        self.rest = max(0.0, self.rest - seconds)
        self.since += seconds
        if ve.before is None:
            return
        back, fresh, stall = _changes(ve.now, ve.before)
        self.heat = self.heat * _MEMORY + back / seconds * (1 - _MEMORY)
        self.stall = self.stall * _MEMORY + stall / seconds * (1 - _MEMORY)
        self.hot = self.heat >= _HEAT or (back > 0 and self.stall >= _STALL)
        self.quiet = back / seconds < _HEAT / 8 and fresh / seconds < _QUIET
        self.calm = self.calm + seconds if self.quiet else 0.0
        if self.calm >= _PROOF:
            self.proven = ve.now.used
        if self.hot:
            self.since = 0.0

    def robbed(self, ve: Ve) -> bool:
        """Whether it misses what it held before."""
        return self.hot and ve.now.used < self.proven - _ROOM // 2

    def stray(self, ve: Ve) -> bool:
        """Whether it brings in data beyond its proven set."""
        return self.calm < _PROOF and ve.now.used > max(self.proven, _floor(ve)) + _WINDOW

    def may_give(self) -> bool:
        """Whether it is cold: it misses nothing, and did not for long."""
        return not self.hot and self.rest <= 0.0 and self.since >= _LONG

    def order(self, ve: Ve) -> tuple[float, int]:
        """Return who of the cold gives first: the coldest, then who has used most only once."""
        return self.heat / max(ve.now.used, 1), -_used_once(ve)


class Policy:
    """See base.Policy."""

    name = "pressure"
    overcommit = True

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._tight = False
        self._count = 0
        self._until_try = _REST

    def auto_guarantee(self, kind: VeType) -> int:
        """40 % for machines, nothing for containers: the working set is protected anyway."""
        return 40 if kind.machine else 0

    def interval(self) -> float:
        """Sooner while somebody lacks memory; seldom enough for very many VEs."""
        if self._tight:
            return max(_LEAST, self._count / _MANY)
        least, most = _CALM
        return max(min(max(self._count / 40, least), most), self._count / _MANY)

    def plan(self, view: View) -> Plan:
        """See the module."""
        self._count = len(view.ves)
        self._known = {name: self._known.get(name) or _Known() for name in view.ves}
        for name, ve in view.ves.items():
            self._known[name].look(ve, view.seconds)
        kept = _kept_free(view)
        spare = view.node.free - kept
        claims = self._claims(view)
        missing = sum(claims.values())
        self._tight = missing > 0 and spare < missing
        take: dict[str, int] = {}
        if self._tight:
            take = self._collect(view, claims, missing - max(spare, 0))
        elif spare < view.node.usable // 4:
            self._hold(view, max(spare, 0))
        plenty = spare > view.node.usable // 2
        # What those below their ceilings may still grow by is as good as used.
        spare -= sum(
            max(known.ceiling - view.ves[name].now.used, 0)
            for name, known in self._known.items()
            if known.ceiling < UNLIMITED
        )
        self._raise(view, max(spare, 0))
        if not self._tight:
            self._relax(max(spare - kept, 0), plenty=plenty)
        return Plan(self._protections(view), take)

    def _claims(self, view: View) -> dict[str, int]:
        """Return who may ask for memory now, and for how much.

        Those who were robbed come first; else those who are hot and no strays.  Strays may only
        try, now and then and for a little: that is how a newcomer gets what nobody uses.
        """
        hot = {n: ve for n, ve in view.ves.items() if self._known[n].hot}
        robbed = {
            n: min(self._known[n].proven - ve.now.used, int(4 * self._known[n].heat) + _WINDOW)
            for n, ve in hot.items()
            if self._known[n].robbed(ve)
        }
        if robbed:
            return robbed
        firm = {
            n: int(self._known[n].heat) for n, ve in hot.items() if not self._known[n].stray(ve)
        }
        if firm:
            return firm
        self._until_try -= view.seconds
        if not hot or self._until_try > 0.0:
            return {}
        self._until_try = _REST
        return dict.fromkeys(hot, view.node.usable // 64 // len(hot))

    def _collect(self, view: View, claims: dict[str, int], wanted: int) -> dict[str, int]:
        """Have others give WANTED bytes; return who gives how much."""
        take: dict[str, int] = {}
        others = {n: ve for n, ve in view.ves.items() if n not in claims}
        strays = [n for n, ve in others.items() if self._known[n].stray(ve)]
        for name in sorted(strays, key=lambda n: -others[n].now.used):
            # It grows again at once: its ceiling comes down even when nothing is needed yet.
            amount = _surplus(others[name], self._known[name].proven) // 2
            wanted -= self._have_give(name, others[name], amount, take)
        cold = [n for n in others if n not in strays and self._known[n].may_give()]
        for name in sorted(cold, key=lambda n: self._known[n].order(others[n])):
            amount = min(_offer(others[name]), wanted)
            wanted -= self._have_give(name, others[name], amount, take)
        return take

    def _have_give(self, name: str, ve: Ve, amount: int, take: dict[str, int]) -> int:
        if amount <= 0:
            return 0
        take[name] = amount
        self._known[name].ceiling = max(ve.now.used - amount, _floor(ve))
        return amount

    def _hold(self, view: View, spare: int) -> None:
        """Memory becomes scarce: let strays grow into half of what is left, and no more."""
        strays = [n for n, ve in view.ves.items() if self._known[n].stray(ve)]
        for name in strays:
            known = self._known[name]
            if not known.hot:
                known.ceiling = min(
                    known.ceiling, view.ves[name].now.used + spare // (2 * len(strays))
                )

    def _raise(self, view: View, spare: int) -> None:
        """Lift the ceilings of those who miss what is above; for strays only into free memory."""
        missing = [n for n in view.ves if self._known[n].hot and self._known[n].ceiling < UNLIMITED]
        for name in missing:
            known, ve = self._known[name], view.ves[name]
            if known.robbed(ve):
                known.ceiling = UNLIMITED
                known.rest = _REST
            elif spare > 0:
                step = max(known.ceiling // 8, 8 * MIB)
                known.ceiling = max(known.ceiling, ve.now.used) + min(step, spare // len(missing))
                known.rest = _REST

    def _relax(self, spare: int, *, plenty: bool) -> None:
        """Let the ceilings of quiet ones rise into memory that nobody lacks; of all if plenty."""
        held = [
            known
            for known in self._known.values()
            if known.ceiling < UNLIMITED and (plenty or (known.quiet and spare > 0))
        ]
        for known in held:
            known.ceiling += known.ceiling // 4 if plenty else max(spare // (4 * len(held)), MIB)

    def _protections(self, view: View) -> dict[str, Protection]:
        lows = {n: self._low(ve, self._known[n]) for n, ve in view.ves.items()}
        usable = max(view.node.usable - _kept_free(view), 1)
        # More than there is cannot be protected: everybody's share shrinks alike.
        scale = min(1.0, usable / max(sum(lows.values()), 1))
        made = {}
        for name, ve in view.ves.items():
            known = self._known[name]
            # What cannot be taken may have grown: a ceiling never stands in its way.
            high = max(known.ceiling, _floor(ve))
            if high >= min(ve.entry.limit, view.node.total):
                high = known.ceiling = UNLIMITED
            made[name] = Protection(low=int(lows[name] * scale), high=high)
        return made

    def _low(self, ve: Ve, known: _Known) -> int:
        """Return what of a VE is protected: its proven set, while it is in use or unchallenged."""
        wanted = _floor(ve) if known.stray(ve) else min(known.proven, known.ceiling)
        if known.hot and not known.stray(ve):
            wanted = max(wanted, ve.now.used)
        return max(min(wanted, ve.entry.limit), ve.entry.guarantee)


def _changes(now: Sample, before: Sample) -> tuple[float, int, float]:
    """Return bytes of the working set that came back, what was brought in, seconds of waiting."""
    stall = 0.0
    if now.stalled is not None and before.stalled is not None:
        stall = max(now.stalled - before.stalled, 0) / 1e6
    fresh = max(now.fresh - before.fresh, 0)
    if now.activated is not None and before.activated is not None:
        return float(max(now.activated - before.activated, 0)), fresh, stall
    back = max(now.refaults - before.refaults, 0)
    # Used twice: the kernel keeps up to half of the cache so when there is reason to.
    used_twice = min(1.0, 2 * now.active / max(now.cache, 1))
    return back * used_twice, fresh, stall


def _kept_free(view: View) -> int:
    least, most = _FREE
    return min(max(view.node.usable // 16, least), most)


def _floor(ve: Ve) -> int:
    """Return what a VE always keeps: guarantee, memory without a file, and a little room."""
    rest = max(ve.now.used - ve.now.anon - ve.now.cache, 0)  # the kernel's own
    return max(ve.entry.guarantee, ve.now.anon + ve.now.anon // 8 + rest + _ROOM)


def _used_once(ve: Ve) -> int:
    return ve.now.cache - ve.now.active


def _surplus(ve: Ve, proven: int) -> int:
    """Return what a stray has beyond its proven set and a window."""
    return max(ve.now.used - max(proven, _floor(ve)) - _WINDOW, 0)


def _offer(ve: Ve) -> int:
    """Return what a cold VE gives in one round: what it used once, a sixteenth of the rest."""
    offer = _used_once(ve) + ve.now.active // 16
    return max(min(offer, ve.now.used - _floor(ve)), 0)
