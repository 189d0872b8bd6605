"""The kernel's merging of equal pages (KSM): its knobs, its counters, what it saves for whom.

Source: Documentation/admin-guide/mm/ksm.rst; mm/ksm.c
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from pyvz.linux import process
from pyvz.units import PAGE_SIZE

DIRECTORY = "/sys/kernel/mm/ksm"
_THREAD = "ksmd"
_FIGURES = (
    *("pages_to_scan", "sleep_millisecs", "pages_shared", "pages_sharing", "pages_unshared"),
    *("pages_volatile", "full_scans", "merge_across_nodes"),
)


class Knobs(NamedTuple):
    """How it works.  run: 0 stopped (what is merged stays so), 1 working, 2 everything unmerged.

    pages: looked at in one turn.  pause: milliseconds between two turns.
    """

    run: int
    pages: int
    pause: int


class Counters(NamedTuple):
    """What it has done.  saved: bytes that processes have and the node does not spend, less what
    the bookkeeping costs.  scans: passes over all memory.  cpu: seconds of its thread.
    """

    saved: int
    scans: int
    cpu: float


class Savings(NamedTuple):
    """What it does for some processes.  merged: bytes of theirs that are shared with an equal page.

    profit: bytes that this saves, less the bookkeeping; negative when it costs more.
    """

    merged: int
    profit: int


class Ksm:
    """The node's KSM; directory: another one for tests."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory
        self._thread: int | None = None

    def available(self) -> bool:
        """Whether the kernel has it."""
        return os.path.exists(f"{self._directory}/run")

    def knobs(self) -> Knobs:
        """Return how it works now; OSError."""
        return Knobs(self._int("run"), self._int("pages_to_scan"), self._int("sleep_millisecs"))

    def turn(self, knobs: Knobs) -> None:
        """Have it work like this; OSError."""
        self._write("pages_to_scan", knobs.pages)
        self._write("sleep_millisecs", knobs.pause)
        self._write("run", knobs.run)

    def advised(self) -> bool:
        """Whether the kernel tunes it itself (advisor_mode, Linux 6.8): then nobody else should."""
        try:
            with open(f"{self._directory}/advisor_mode", encoding="ascii") as file:
                return "[none]" not in file.read()
        except FileNotFoundError:
            return False

    def counters(self) -> Counters:
        """Return what it has done; OSError."""
        try:
            saved = self._int("general_profit")  # Linux 6.4
        except FileNotFoundError:
            saved = self._int("pages_sharing") * PAGE_SIZE
        return Counters(saved, self._int("full_scans"), self._cpu())

    def figures(self) -> dict[str, int]:
        """Return the files that tell how it works and what it has merged, by their names."""
        found = {}
        for name in _FIGURES:
            with contextlib.suppress(OSError, ValueError):
                found[name] = self._int(name)
        return found

    def _cpu(self) -> float:
        if self._thread is None:
            self._thread = _find_thread()
        try:
            return process.cpu_seconds(self._thread)
        except ProcessLookupError:
            return 0.0

    def _int(self, name: str) -> int:
        with open(f"{self._directory}/{name}", encoding="ascii") as file:
            return int(file.read())

    def _write(self, name: str, value: int) -> None:
        with open(f"{self._directory}/{name}", "w", encoding="ascii") as file:
            file.write(str(value))


def savings(pids: Iterable[int]) -> Savings:
    """Return what KSM does for these processes; those that have ended count nothing."""
    merged = profit = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{pid}/ksm_stat", encoding="ascii") as file:  # Linux 6.1
                values = dict(line.split()[:2] for line in file)
            merged += int(values.get("ksm_merging_pages", 0)) * PAGE_SIZE
            merged += int(values.get("ksm_zero_pages", 0)) * PAGE_SIZE
            profit += int(values.get("ksm_process_profit", 0))
    return Savings(merged, profit)


def _find_thread() -> int:
    """Return the pid of the kernel's thread; 0 when it cannot be seen from here."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/comm", "rb") as file:
                if file.read().strip() == _THREAD.encode() and not _argv(entry):
                    return int(entry)
    return 0


def _argv(pid: str) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:  # empty for a kernel thread only
        return file.read(1)
