"""One round of the memory manager: look at everybody, ask the policy, put what changed in force.

A policy that raises is logged, and everything stays as it was.  One VE that cannot be read or
written (it is just ending) stops nobody else.  What was put in force is remembered only to leave
out writes that would change nothing; it is asserted anew now and then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pyvz.errors import InternalError, VZError
from pyvz.memory.managed import Managed
from pyvz.memory.policy.base import NumaNode, Plan, Policy, Ve, View
from pyvz.model.memory import NodeMemory, Protection, Reservation, Sample
from pyvz.units import MIB, UNLIMITED

log = logging.getLogger(__name__)

_ASSERT_EVERY = 12  # rounds
_NOTHING = Protection()


class Placed(NamedTuple):
    """A VE whose processors and NUMA nodes are to change."""

    name: str
    cpus: str | None
    mems: str | None


class Counts(NamedTuple):
    """What the manager has done since it began."""

    rounds: int = 0
    failures: int = 0
    taken: int = 0
    changes: int = 0


class Round(NamedTuple):
    """What a round is about.  pinned: names whose owner chose processors or NUMA nodes."""

    node: NodeMemory
    entries: Iterable[Reservation]
    numa: tuple[NumaNode, ...] = ()
    pinned: frozenset[str] = frozenset()


class Balancer:
    """Keeps what one round knows for the next.  Not thread-safe: the caller has a lock.

    managed: how a registered VE is reached, None when it cannot be.  place: binds a VE to
    processors and NUMA nodes (None: as its owner has set it).
    """

    def __init__(
        self,
        policy: Policy,
        managed: Callable[[Reservation], Managed | None],
        place: Callable[[Placed], None],
    ) -> None:
        self.policy = policy
        self.counts = Counts()
        self.samples: dict[str, tuple[float, Sample]] = {}
        self.given: dict[str, Protection] = {}
        self._guarantees: dict[str, int] = {}
        self._managed = managed
        self._place = place
        self._last = time.monotonic()

    def round(self, about: Round) -> None:
        """Do one round."""
        self._round(about, self.policy)

    def switch(self, policy: Policy, about: Round) -> None:
        """Go over to another policy, whose first round is done at once.

        Raises InternalError when the new one fails; then the old one and all it did stay.
        """
        if not self._round(about, policy):
            raise InternalError(
                f"the policy {policy.name} failed; {self.policy.name} stays in force",
                hint="The log of vzd has its traceback.",
            )
        self.policy = policy

    def forget(self, name: str) -> None:
        """A VE is gone."""
        for table in (self.samples, self.given, self._guarantees):
            table.pop(name, None)

    def _round(self, about: Round, policy: Policy) -> bool:
        now = time.monotonic()
        reached, ves = self._look(about)
        view = View(about.node, ves, max(now - self._last, 0.001), about.numa)
        self._last = now
        plan = self._ask(policy, view)
        for name, ve in ves.items():
            self.samples[name] = (time.time(), ve.now)
        for name in self.given.keys() - ves.keys():
            self.forget(name)
        if plan is None:
            return False
        everything = self.counts.rounds % _ASSERT_EVERY == 0
        changes = taken = 0
        for name, managed in reached.items():
            wanted = plan.protections.get(name, _NOTHING)
            changes += self._apply(ves[name], managed, wanted, everything)
            if amount := plan.take.get(name, 0):
                taken += _take(name, managed, amount)
        self.counts = self.counts._replace(
            rounds=self.counts.rounds + 1,
            taken=self.counts.taken + taken,
            changes=self.counts.changes + changes,
        )
        return True

    def _look(self, about: Round) -> tuple[dict[str, Managed], dict[str, Ve]]:
        reached: dict[str, Managed] = {}
        ves: dict[str, Ve] = {}
        for entry in about.entries:
            if not entry.active or (managed := self._managed(entry)) is None:
                continue
            try:
                sample = managed.sample()
            except (OSError, VZError) as error:
                log.debug("%s cannot be looked at: %s", entry.name, error)
                continue
            if sample is None:
                continue
            name = entry.name
            before = self.samples.get(name)
            reached[name] = managed
            given = self.given.get(name, _NOTHING)
            ves[name] = Ve(entry, sample, before and before[1], given, pinned=name in about.pinned)
        return reached, ves

    def _ask(self, policy: Policy, view: View) -> Plan | None:
        try:
            plan = policy.plan(view)
            return _checked(plan, view.ves)
        except Exception:  # the policy loop: a policy may be anybody's
            log.exception("the memory policy %s failed; everything stays as it is", policy.name)
            self.counts = self.counts._replace(failures=self.counts.failures + 1)
            return None

    def _apply(self, ve: Ve, managed: Managed, wanted: Protection, everything: bool) -> int:  # noqa: FBT001
        name, guarantee = ve.entry.name, ve.entry.guarantee
        old = self.given.get(name)
        if old is not None and not everything:
            same = self._guarantees.get(name) == guarantee and not _differs(old, wanted)
            if same:
                return 0
        try:
            managed.protect(guarantee, wanted)
            if (wanted.cpus, wanted.mems) != ((old or _NOTHING).cpus, (old or _NOTHING).mems):
                self._place(Placed(name, wanted.cpus, wanted.mems))
        except (OSError, VZError) as error:
            log.warning("%s: its protection could not be changed: %s", name, error)
            return 0
        self.given[name] = wanted
        self._guarantees[name] = guarantee
        return 1


def _checked(plan: Plan, ves: Mapping[str, Ve]) -> Plan:
    """Return PLAN when it makes sense; raise ValueError for a policy's nonsense."""
    for name, wanted in plan.protections.items():
        if not (isinstance(wanted.low, int) and isinstance(wanted.high, int)):
            raise ValueError(f"{name}: {wanted} is not in whole bytes")  # noqa: TRY004
        if wanted.low < 0 or wanted.high < ves[name].entry.guarantee:
            raise ValueError(f"{name}: {wanted} is negative or below the guarantee")
    return plan


def _differs(old: Protection, new: Protection) -> bool:
    """Whether the change is worth the writes: below a thirty-second nobody would notice it."""
    if (old.cpus, old.mems) != (new.cpus, new.mems):
        return True
    return any(
        (a >= UNLIMITED) != (b >= UNLIMITED) or abs(a - b) > max(4 * MIB, min(a, b) // 32)
        for a, b in ((old.low, new.low), (old.high, new.high))
    )


def _take(name: str, managed: Managed, amount: int) -> int:
    try:
        return managed.take(amount)
    except (OSError, VZError) as error:
        log.debug("%s could not give back: %s", name, error)
        return 0
