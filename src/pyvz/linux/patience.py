"""Patience that is counted in looks, not by the clock: who stood still accuses no other."""

from __future__ import annotations

from collections.abc import Iterator


def looks(seconds: float, step: float = 0.1) -> Iterator[float]:
    """Yield how long to wait before each look; together they are SECONDS.

    A machine that stands still for a while (a busy one, a suspended one) takes one look's time
    from whoever is waited for, however long it lasts.
    """
    while seconds > 0:
        wait = min(step, seconds)
        yield wait
        seconds -= wait
