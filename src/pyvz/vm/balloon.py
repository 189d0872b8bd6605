"""The balloon of a running machine: what its guest tells of its memory, and how much it has.

What the guest tells is its own business: a lie takes memory from nobody but itself.
Source: docs/interop/virtio-balloon-stats.rst of QEMU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyvz.vm.monitor import Monitor

_DEVICE = "/machine/peripheral/balloon0"
_INTERVAL = 5  # seconds between two questions of QEMU to the guest
PATIENCE = 2.0  # seconds for an answer: nobody may hold up a round over all
_MOST = 1 << 53


class Told(NamedTuple):
    """Bytes.  actual: what the guest has; the rest is the guest's word, 0 where it is silent.

    available: what programs inside could still get.  caches: of its disks.  swap_in, swap_out:
    what it has moved so.  minor, major: page faults, a number.  updated: seconds since the epoch of
    its word, 0: it never said anything.
    """

    actual: int
    total: int = 0
    free: int = 0
    available: int = 0
    caches: int = 0
    swap_in: int = 0
    swap_out: int = 0
    minor: int = 0
    major: int = 0
    updated: int = 0


def told(monitor: Monitor, patience: float = PATIENCE) -> Told:
    """Return what is known now; raises MonitorError, NotRunning, Timeout."""
    actual = _number(monitor.execute("query-balloon", timeout=patience), "actual")
    where = {"path": _DEVICE, "property": "guest-stats"}
    answer = monitor.execute("qom-get", where, timeout=patience)
    updated = _number(answer, "last-update")
    if not updated:
        ask_every(monitor, _INTERVAL)
        return Told(actual)
    stats = answer.get("stats")
    return Told(
        actual,
        total=_number(stats, "stat-total-memory"),
        free=_number(stats, "stat-free-memory"),
        available=_number(stats, "stat-available-memory"),
        caches=_number(stats, "stat-disk-caches"),
        swap_in=_number(stats, "stat-swap-in"),
        swap_out=_number(stats, "stat-swap-out"),
        minor=_number(stats, "stat-minor-faults"),
        major=_number(stats, "stat-major-faults"),
        updated=updated,
    )


def ask_every(monitor: Monitor, seconds: int) -> None:
    """Have QEMU ask the guest every SECONDS seconds; 0: no more."""
    interval = {"path": _DEVICE, "property": "guest-stats-polling-interval"}
    monitor.execute("qom-set", interval | {"value": seconds}, timeout=PATIENCE)


def leave(monitor: Monitor, size: int, patience: float = PATIENCE) -> None:
    """Have the balloon leave SIZE bytes to the guest, which follows when it can."""
    monitor.execute("balloon", {"value": size}, timeout=patience)


def _number(answer: Any, name: str) -> int:  # noqa: ANN401
    value = answer.get(name) if isinstance(answer, dict) else None
    return value if isinstance(value, int) and 0 <= value < _MOST else 0
