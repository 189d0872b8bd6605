"""Tells when a container is refused more of something than its limit, or loses processes to it.

The kernel only counts (failcnt, memory.events, pids.events); this looks at the counters now and
then.  Nothing is missed by that, for they only grow.  Hitting a limit may go on for hours, so it is
told once, and again when it still happens half an hour later; killed processes are told always.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from pyvz.errors import VZError
from pyvz.model import event
from pyvz.model.environment import Environment
from pyvz.model.usage import Usage
from pyvz.operations.node import Node
from pyvz.units import UNLIMITED

logger = logging.getLogger(__name__)

SILENCE = 1800.0  # seconds


class Hit(NamedTuple):
    """A counter that has grown.  resource: its beancounter's name, or "oom"."""

    resource: str
    times: int
    held: int | None
    limit: int | None


def grown(before: Usage, now: Usage) -> list[Hit]:
    """Return what has been hit between two looks (pure)."""
    rows = (
        ("oom", before.oom_kills, now.oom_kills, now.memory, now.memory_limit),
        ("physpages", before.memory_failures, now.memory_failures, now.memory, now.memory_limit),
        ("numproc", before.pids_failures, now.pids_failures, now.pids, now.pids_limit),
    )
    return [
        Hit(name, new - (old or 0), held, limit)
        for name, old, new, held, limit in rows
        if new is not None and new > (old or 0)
    ]


class LimitWatch:
    """The counters of one node's containers as they were last seen; for one thread at a time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._seen: dict[tuple[str, int], Usage] = {}
        self._looked = False
        self._told: dict[tuple[str, str], float] = {}

    def look(self) -> bool:
        """Compare the counters, and tell of those that have grown; whether anything runs."""
        running = {(uuid, init.pid) for uuid, init in self._node.runtime.running().items()}
        for key in running:
            try:
                now = self._node.cgroups.usage(key[0])
            except OSError:  # it has just ended
                continue
            # At the first look of all, an earlier vzd has told of what there was.
            before = self._seen.get(key, Usage() if self._looked else now)
            self._seen[key] = now
            self._tell(key[0], grown(before, now))
        self._looked = True
        for key in self._seen.keys() - running:
            del self._seen[key]
        return bool(running)

    def _tell(self, uuid: str, hits: list[Hit]) -> None:
        if not hits:
            return
        try:
            env = self._node.registry.resolve(uuid)
        except VZError:
            return
        for hit in hits:
            if hit.resource == "oom":
                self._tell_killed(env, hit)
            elif self._due(uuid, hit.resource):
                self._tell_hit(env, hit)

    def _tell_killed(self, env: Environment, hit: Hit) -> None:
        limit = _words(hit.limit)
        logger.warning(
            "%s: the kernel killed %d processes for want of memory (limit %s)",
            env.name, hit.times, limit,
        )  # fmt: skip
        self._node.publish(event.OOM, env, killed=str(hit.times), limit=limit)

    def _tell_hit(self, env: Environment, hit: Hit) -> None:
        held, limit = _words(hit.held), _words(hit.limit)
        logger.warning(
            "%s: hit its limit of %s %d times (held %s, limit %s)",
            env.name, hit.resource, hit.times, held, limit,
        )  # fmt: skip
        self._node.publish(
            event.LIMIT, env, resource=hit.resource, failcnt=str(hit.times), held=held, limit=limit
        )

    def _due(self, uuid: str, resource: str) -> bool:
        now = time.monotonic()
        if now - self._told.get((uuid, resource), -SILENCE) < SILENCE:
            return False
        self._told[uuid, resource] = now
        return True


def _words(value: int | None) -> str:
    if value is None:
        return "unknown"
    return "unlimited" if value >= UNLIMITED else str(value)
