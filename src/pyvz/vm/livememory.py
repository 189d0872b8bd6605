"""The memory of a running machine sent to another QEMU: rounds while it runs, then a short stop.

    begin        rounds of memory; a guest that writes faster is slowed down (auto-converge)
    standing     QEMU has stopped the machine and waits ("pre-switchover"): disks are settled now
    switch_over  the rest of it; afterwards the other QEMU has everything, and nothing runs
    call_off     whatever was under way is not: the machine goes on here

Source: QEMU, docs/devel/migration (7.2: docs/devel/migration.rst), qapi/migration.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import CheckpointError, MonitorError, Timeout, VZError
from pyvz.vm.monitor import Monitor

STREAM: Final = "memory"  # name of the descriptor
_FAST: Final = 1 << 40  # bytes per second: the tunnel is the limit
_STALL: Final = 120.0  # seconds without a byte more, after which it is given up
_POLL: Final = 0.1
_SOON: Final = 0.01
_STANDING: Final = "pre-switchover"
_OURS: Final = ("events", "auto-converge", "pause-before-switchover", "postcopy-ram")


class Figures(NamedTuple):
    """How far it is.  Bytes, except rate (bytes per second), rounds, and slowed (percent)."""

    sent: int
    left: int
    total: int
    rate: int
    rounds: int
    slowed: int


def take(monitor: Monitor, descriptor: int, *, post_copy: bool) -> None:
    """Have a QEMU that waits take the memory from a socket."""
    _can(monitor, {"events": True, "postcopy-ram": post_copy})
    monitor.give(descriptor, STREAM)
    monitor.execute("migrate-incoming", {"uri": f"fd:{STREAM}"})


def begin(monitor: Monitor, descriptor: int, *, post_copy: bool) -> None:
    """Begin to send into a socket."""
    wanted = {"events": True, "auto-converge": not post_copy, "pause-before-switchover": True}
    _can(monitor, wanted | {"postcopy-ram": post_copy})
    rates = {"max-bandwidth": _FAST, "max-postcopy-bandwidth": 0}
    monitor.execute("migrate-set-parameters", rates)
    monitor.give(descriptor, STREAM)
    monitor.execute("migrate", {"uri": f"fd:{STREAM}"})


def _can(monitor: Monitor, wanted: dict[str, bool]) -> None:
    asked = [{"capability": name, "state": state} for name, state in wanted.items()]
    monitor.execute("migrate-set-capabilities", {"capabilities": asked})


def standing(monitor: Monitor, tell: Callable[[Figures], None], *, post_copy: bool) -> None:
    """Wait until the machine stands still and all but the rest has gone; TELL may call it off.

    post_copy: it stands still after the first round, and its memory follows when it runs there.
    Raises CheckpointError with QEMU's words, Timeout.
    """
    asked = False

    def look(answer: dict[str, Any]) -> None:
        nonlocal asked
        found = figures(answer)
        tell(found)
        if post_copy and not asked and found.rounds > 1:
            asked = True
            monitor.execute("migrate-start-postcopy")

    _await(monitor, {_STANDING}, look, pause=_POLL)


def switch_over(monitor: Monitor, poll: Callable[[], None], *, post_copy: bool) -> None:
    """Send the rest of a machine that stands still."""
    monitor.execute("migrate-continue", {"state": _STANDING})
    wanted = {"completed", "postcopy-active"} if post_copy else {"completed"}
    _await(monitor, wanted, lambda _: poll(), pause=_SOON)


def arrived(monitor: Monitor, poll: Callable[[], None], *, post_copy: bool) -> None:
    """Wait, in the taking QEMU, until all that it needs to run is here."""
    wanted = {"completed", "postcopy-active"} if post_copy else {"completed"}
    _await(monitor, wanted, lambda _: poll(), pause=_SOON)
    # QEMU says so a moment before it lets itself be told to go on.
    deadline = time.monotonic() + _STALL
    while monitor.execute("query-status")["status"] == "inmigrate":
        if time.monotonic() > deadline:
            raise Timeout("QEMU has the memory, and does not take it into use")
        time.sleep(_SOON)


def complete(monitor: Monitor, poll: Callable[[], None]) -> None:
    """Wait until all memory has followed a machine that runs already (post-copy)."""
    _await(monitor, {"completed"}, lambda _: poll(), pause=_POLL)


def call_off(monitor: Monitor, *, run: bool) -> None:
    """End what is under way, and let the machine go on when it is to RUN; repeatable."""
    with suppress(VZError):
        monitor.execute("migrate_cancel")
        _await(monitor, {"cancelled", "failed", "completed", "none"}, None, pause=_SOON)
    with suppress(VZError):
        _can(monitor, dict.fromkeys(_OURS, False))
    with suppress(VZError):
        monitor.execute("closefd", {"fdname": STREAM})
    if run and monitor.execute("query-status")["status"] != "running":
        monitor.execute("cont")


def _await(
    monitor: Monitor,
    wanted: set[str],
    look: Callable[[dict[str, Any]], None] | None,
    *,
    pause: float,
) -> None:
    last, moved = -1, time.monotonic()
    while True:
        told = monitor.told
        answer: dict[str, Any] = monitor.execute("query-migrate")
        status = answer.get("status", "none")
        if status in wanted:
            return
        if status in {"failed", "cancelled"}:
            raise CheckpointError(answer.get("error-desc") or f"QEMU: the transfer {status}")
        if look is not None:
            look(answer)
        done = int(answer.get("ram", {}).get("transferred", 0))
        if done != last:
            last, moved = done, time.monotonic()
        elif time.monotonic() - moved > _STALL:
            raise Timeout(f"QEMU moved nothing for {_STALL:g} s")
        monitor.doze(pause, told)


def figures(answer: dict[str, Any]) -> Figures:
    """Return what query-migrate tells."""
    ram = answer.get("ram", {})
    return Figures(
        sent=int(ram.get("transferred", 0)),
        left=int(ram.get("remaining", 0)),
        total=int(ram.get("total", 0)),
        rate=int(float(ram.get("mbps", 0)) * 125000),
        rounds=int(ram.get("dirty-sync-count", 0)),
        slowed=int(answer.get("cpu-throttle-percentage", 0)),
    )


def check_post_copy(monitor: Monitor) -> None:
    """Raise MonitorError when this node's kernel does not let QEMU have its memory later."""
    try:
        _can(monitor, {"postcopy-ram": True})
    except MonitorError as error:
        raise MonitorError(
            "QEMU cannot take memory later (post-copy) on this node",
            details=error.message,
            hint="Allow it there: sysctl vm.unprivileged_userfaultfd=1",
        ) from error
