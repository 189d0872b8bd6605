"""The threads of a running QEMU that are processors of its guest, and what each one has done.

QEMU has PIDs of its own, and calls its threads by those; /proc says which is which.
Source: proc_pid_status(5) (NSpid), Documentation/scheduler/sched-stats.rst of the kernel.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import VZError
from pyvz.operations.node import Node

_PROCESSOR = 39 - 3  # field of /proc/PID/stat, counted behind the name


class Thread(NamedTuple):
    """A processor.  time: nanoseconds that it ran; delay: that it waited for one of the node's.

    processor: of the node, on which it ran last.
    """

    time: int
    delay: int
    processor: int


def processors(node: Node, uuid: str) -> list[Thread]:
    """Return the processors of a machine in their order; none when it does not run on."""
    with suppress(VZError, OSError, LookupError, ValueError, TypeError):
        process = node.machines.running()[uuid]
        rows = node.machines.monitor(uuid).execute("query-cpus-fast")
        numbers = [
            int(each["thread-id"]) for each in sorted(rows, key=lambda row: row["cpu-index"])
        ]
        there = _threads(Path(f"/proc/{process.pid}/task"))
        return [_thread(there[number]) for number in numbers]
    return []


def _threads(tasks: Path) -> dict[int, Path]:
    """Return the directory of each thread by its number in the process's own PID namespace."""
    found = {}
    for each in tasks.iterdir():
        for line in (each / "status").read_text().splitlines():
            if line.startswith("NSpid:"):
                found[int(line.split()[-1])] = each
    return found


def _thread(directory: Path) -> Thread:
    time, delay, *_ = map(int, (directory / "schedstat").read_text().split())
    fields = (directory / "stat").read_text().rpartition(")")[2].split()
    return Thread(time, delay, int(fields[_PROCESSOR]))
