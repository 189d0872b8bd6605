"""What is told when counters of limits grow."""

from __future__ import annotations

from pyvz.model.usage import Usage
from pyvz.operations.limitwatch import Hit, grown
from pyvz.units import MIB


def test_what_has_grown_is_told_with_what_is_held() -> None:
    before = Usage(memory_failures=3, oom_kills=0, pids_failures=1)
    now = Usage(
        memory=64 * MIB, memory_limit=64 * MIB, memory_failures=10, oom_kills=2, pids_failures=1
    )
    assert grown(before, now) == [
        Hit("oom", 2, 64 * MIB, 64 * MIB),
        Hit("physpages", 7, 64 * MIB, 64 * MIB),
    ]


def test_a_container_seen_for_the_first_time_begins_at_nothing() -> None:
    assert grown(Usage(), Usage(pids=9, pids_limit=9, pids_failures=1)) == [Hit("numproc", 1, 9, 9)]


def test_nothing_is_told_of_what_nobody_counts() -> None:
    assert grown(Usage(), Usage()) == []
