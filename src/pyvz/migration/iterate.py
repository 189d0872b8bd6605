"""When to stop sending rounds and halt the environment.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_ROUNDS: Final = 8  # P.Haul, phaul/iters.py: MAX_ITERS_COUNT
MIN_PAGES: Final = 64  # MIN_ITER_PAGES_WRITTEN
MAX_GROWTH: Final = 10  # percent: MAX_ITER_GROW_RATE
# A round of a disk takes longer than one of memory: the next has to be a fifth smaller to pay.
DISK_GROWTH: Final = -20  # percent
SMALL_DISK: Final = 16 << 20  # bytes of a disk round that are sent while halted as well


def goes_on(
    rounds: Sequence[int],
    *,
    small: int = MIN_PAGES,
    most: int = MAX_ROUNDS,
    growth: int = MAX_GROWTH,
) -> bool:
    """Whether another round pays, after rounds of those sizes (pages, or bytes of a disk).

    P.Haul's rule: at most 8 rounds; none after a small one; none when they grow by more than 10 %.
    """
    if len(rounds) >= most:
        return False
    if not rounds:
        return True
    if rounds[-1] <= small:
        return False
    if len(rounds) == 1:
        return True
    return rounds[-1] * 100 <= rounds[-2] * (100 + growth)
