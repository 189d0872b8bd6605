"""The processors of the node: how fast, which ones, and lists of them ("0-3,5")."""

from __future__ import annotations

import os
from collections.abc import Iterable

_FREQUENCY = "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"  # kHz


def mhz(frequency: str = _FREQUENCY, cpuinfo: str = "/proc/cpuinfo") -> float:
    """Return the MHz of one processor: the most it can, else what it has now; 0: not told."""
    try:
        with open(frequency, encoding="ascii") as file:
            return int(file.read()) / 1000
    except (OSError, ValueError):
        pass
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            rows = [line.partition(":") for line in file if line.startswith("cpu MHz")]
        return max((float(value) for _, _, value in rows), default=0.0)
    except (OSError, ValueError):
        return 0.0


def usable() -> frozenset[int]:
    """Return the processors that we, and so containers, may run on."""
    return frozenset(os.sched_getaffinity(0))


def parse(text: str) -> frozenset[int]:
    """Return the processors of a list as cpuset files have it; what is no number is left out."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def render(processors: Iterable[int]) -> str:
    """Return the list of processors in the form of cpuset files."""
    parts: list[list[int]] = []
    for number in sorted(processors):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
