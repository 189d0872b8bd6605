"""What the drives of a running machine have moved, as QEMU counts it (query-blockstats)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import VZError
from pyvz.vm.monitor import ANSWER, Monitor

_OF_QEMU: Final = (
    *("rd_operations", "rd_bytes", "rd_total_time_ns"),
    *("wr_operations", "wr_bytes", "wr_total_time_ns"),
    *("flush_operations", "flush_total_time_ns"),
)


class Moved(NamedTuple):
    """Requests, bytes and nanoseconds of a drive since the machine was started."""

    reads: int = 0
    read: int = 0
    reading: int = 0
    writes: int = 0
    written: int = 0
    writing: int = 0
    flushes: int = 0
    flushing: int = 0


def moved(monitor: Monitor, patience: float = ANSWER) -> dict[str, Moved]:
    """Return what each drive has moved, by our names; nothing when QEMU does not answer."""
    found: dict[str, Moved] = {}
    with suppress(VZError, LookupError, TypeError, ValueError):
        for each in monitor.execute("query-blockstats", timeout=patience):
            found[str(each.get("node-name", ""))] = _moved(each["stats"])
    return found


def _moved(stats: dict[str, Any]) -> Moved:
    return Moved(*(int(stats[word]) for word in _OF_QEMU))
