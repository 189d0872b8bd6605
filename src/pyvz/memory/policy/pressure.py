"""pressure: keep everybody's working set, and take from those who do not need what they have.

Linux reclaims from all groups alike: one that reads a backup once pushes out what its neighbour
reads all day.  This policy tells the two apart by what comes back after it was taken:

hot     pages that belong to its working set are read in again (refaults that the kernel
        activates, or, where it does not tell, refaults in the measure in which its cache is used
        twice), or its tasks stand still for want of memory (PSI).  It is taken from no more, and
        its memory is protected.
cold    nothing it had is missed.  When a hot one lacks memory and the node has none, the coldest
        gives back first, the cache that was used only once before the rest, and gets a ceiling
        (memory.high) there, so that what the hot one has won is not read over.

A cold one that misses what it gave becomes hot, loses its ceiling and is left alone for a while:
so its true working set is found, idle pages included, by asking and not by guessing.  When memory
is plenty, ceilings rise and vanish.  Nobody is made to give back what has no file behind it, and
nobody goes below its guarantee.
"""

from __future__ import annotations

from typing import Final

from pyvz.memory.policy.base import Plan, Ve, View
from pyvz.model.memory import Protection, VeType
from pyvz.units import MIB, UNLIMITED

_CALM: Final = 5.0  # seconds between two rounds, when nobody lacks memory
_BUSY: Final = 1.0  # when somebody does; longer on a node with very many
_MANY: Final = 100.0  # VEs that are looked at in one second at most
_HEAT: Final = 1 * MIB  # bytes per second that come back: from here on it is hot
_STALL: Final = 0.02  # or so much of its time that its tasks wait for memory
_MEMORY: Final = 0.5  # how much of the heat of the last round counts in this one
_REST: Final = 15.0  # seconds in which one is left alone that missed what it had given
_LONG: Final = 300.0  # seconds after which a working set that was fought for may be gone
_ROOM: Final = 16 * MIB  # what everybody keeps beside what cannot be taken
_GROWTH: Final = 8 * MIB  # by which one without heat may grow while somebody lacks memory
_FREE = (16 * MIB, 512 * MIB)  # kept free of the node: a thirty-second, within these


class _Known:
    """What is remembered of one VE.

    heat: bytes per second that came back.  rest: seconds to leave it alone.  since: seconds since
    it was hot.
    """

    __slots__ = ("ceiling", "heat", "rest", "since")

    def __init__(self) -> None:
        self.heat = 0.0
        self.ceiling = UNLIMITED
        self.rest = 0.0
        self.since = _LONG

    def order(self, used: int) -> tuple[bool, float]:
        """Return who gives first: who was not hot for long, then who is the coldest."""
        return self.since < _LONG, self.heat / max(used, 1)


class Policy:
    """See base.Policy."""

    name = "pressure"
    overcommit = True

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._tight = False
        self._count = 0

    def auto_guarantee(self, kind: VeType) -> int:
        """40 % for machines, nothing for containers: the working set is protected anyway."""
        return 40 if kind.machine else 0

    def interval(self) -> float:
        """Sooner while somebody lacks memory."""
        return max(_BUSY, self._count / _MANY) if self._tight else _CALM

    def plan(self, view: View) -> Plan:
        """See the module."""
        self._count = len(view.ves)
        self._known = {name: self._known.get(name) or _Known() for name in view.ves}
        hot = [name for name, ve in view.ves.items() if self._warm(ve, self._known[name], view)]
        spare = view.node.free - _kept_free(view)
        missing = sum(int(self._known[name].heat * _BUSY) for name in hot)
        self._tight = bool(hot) and spare < missing
        take: dict[str, int] = {}
        if self._tight:
            take = self._collect(view, hot, missing - spare)
        elif spare > _kept_free(view):
            self._relax(spare - _kept_free(view))
        return Plan(self._protections(view, set(hot)), take)

    def _warm(self, ve: Ve, known: _Known, view: View) -> bool:
        """Take note of how hot a VE is; return whether it lacks memory or just did."""
        known.rest = max(0.0, known.rest - view.seconds)
        known.since += view.seconds
        came_back, stall = _missed(ve)
        known.heat = known.heat * _MEMORY + came_back / view.seconds * (1 - _MEMORY)
        if known.heat < _HEAT and stall / view.seconds < _STALL:
            return known.rest > 0.0 and known.ceiling >= UNLIMITED and known.heat > 0.0
        known.ceiling = UNLIMITED
        known.rest = _REST
        known.since = 0.0
        return True

    def _collect(self, view: View, hot: list[str], wanted: int) -> dict[str, int]:
        """Have the cold ones give WANTED bytes, the coldest first; return who gives how much."""
        busy = set(hot)
        cold = [
            (self._known[name].order(ve.now.used), -_once_used(ve), name)
            for name, ve in view.ves.items()
            if name not in busy and self._known[name].rest <= 0.0
        ]
        take: dict[str, int] = {}
        for _, _, name in sorted(cold):
            ve, known = view.ves[name], self._known[name]
            amount = min(wanted, _offer(ve))
            if amount > 0:
                take[name] = amount
                wanted -= amount
            floor = max(_floor(ve), ve.now.used - amount + (0 if amount else _GROWTH))
            known.ceiling = min(max(known.ceiling, _floor(ve)), floor)
        return take

    def _relax(self, spare: int) -> None:
        """Let ceilings rise into memory that nobody lacks."""
        held = [known for known in self._known.values() if known.ceiling < UNLIMITED]
        for known in held:
            known.ceiling += max(spare // (4 * len(held)), MIB)

    def _protections(self, view: View, hot: set[str]) -> dict[str, Protection]:
        lows = {name: _working_set(ve, hot=name in hot) for name, ve in view.ves.items()}
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


def _missed(ve: Ve) -> tuple[float, float]:
    """Return the bytes of its working set that came back, and the seconds it waited."""
    now, before = ve.now, ve.before
    if before is None:
        return 0.0, 0.0
    stall = 0.0
    if now.stalled is not None and before.stalled is not None:
        stall = max(now.stalled - before.stalled, 0) / 1e6
    if now.activated is not None and before.activated is not None:
        return float(max(now.activated - before.activated, 0)), stall
    back = max(now.refaults - before.refaults, 0)
    # Used twice: the kernel keeps up to half of the cache so when there is reason to.
    used_twice = min(1.0, 2 * now.active / max(now.cache, 1))
    return back * used_twice, stall


def _kept_free(view: View) -> int:
    least, most = _FREE
    return min(max(view.node.usable // 32, least), most)


def _floor(ve: Ve) -> int:
    """Return what a VE always keeps: guarantee, memory without a file, and a little room."""
    rest = max(ve.now.used - ve.now.anon - ve.now.cache, 0)  # the kernel's own
    return max(ve.entry.guarantee, ve.now.anon + ve.now.anon // 8 + rest + _ROOM)


def _once_used(ve: Ve) -> int:
    return ve.now.cache - ve.now.active


def _offer(ve: Ve) -> int:
    """Return what a cold VE gives in one round: what it used once, and an eighth of the rest."""
    offer = _once_used(ve) + ve.now.active // 8
    return max(min(offer, ve.now.used - _floor(ve)), 0)


def _working_set(ve: Ve, *, hot: bool) -> int:
    wanted = ve.now.used if hot else ve.now.anon + ve.now.active
    return max(min(wanted, ve.entry.limit), ve.entry.guarantee)
