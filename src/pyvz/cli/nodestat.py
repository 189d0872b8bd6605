"""What the node itself is doing, from /proc: the head of vzstat."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_USER, _NICE, _SYSTEM, _IDLE, _IOWAIT = range(5)  # of the "cpu" line, proc_stat(5)


class NodeSample:
    """The node at one moment: CPU ticks by kind, memory and swap in KiB, load, uptime."""

    def __init__(self, stat: str, meminfo: str, loadavg: str, uptime: str) -> None:
        words = stat.split("\n", 1)[0].split()[1:]
        self.ticks = [int(word) for word in words]
        self.memory = {
            key: int(rest.split()[0])
            for key, _, rest in (line.partition(":") for line in meminfo.splitlines())
            if rest.split()
        }
        self.load = loadavg.split()[:3]
        self.uptime = float(uptime.split(maxsplit=1)[0])


def node_sample() -> NodeSample:
    """Return the node as it is now."""
    return NodeSample(*(_read(name) for name in ("stat", "meminfo", "loadavg", "uptime")))


def _read(name: str) -> str:
    with open(f"/proc/{name}", encoding="ascii", errors="replace") as file:
        return file.read()


def head(last: NodeSample, now: NodeSample) -> list[str]:
    """Return the lines about the node."""
    return [
        f" {time.strftime('%H:%M:%S')}, up {up(now.uptime)}, load average: {', '.join(now.load)}",
        "CPU " + _cpu(last.ticks, now.ticks),
        "Mem " + _memory(now.memory),
    ]


def up(seconds: float) -> str:
    """Return an uptime as uptime(1) prints it."""
    minutes = int(seconds) // 60
    days, minutes = divmod(minutes, 24 * 60)
    clock = f"{minutes // 60}:{minutes % 60:02}"
    return f"{days} days, {clock}" if days else clock


def _cpu(last: Sequence[int], now: Sequence[int]) -> str:
    used = [max(after - before, 0) for before, after in zip(last, now, strict=True)]
    # Time of guests is part of user time already.
    total = sum(used[:8]) or 1

    def percent(*kinds: int) -> str:
        return f"{100 * sum(used[kind] for kind in kinds) / total:.1f}%"

    return (
        f"user {percent(_USER, _NICE)}, sys {percent(_SYSTEM)},"
        f" idle {percent(_IDLE)}, wait {percent(_IOWAIT)}"
    )


def _memory(memory: dict[str, int]) -> str:
    def mib(key: str) -> str:
        return f"{memory.get(key, 0) // 1024}MB"

    return (
        f"total {mib('MemTotal')}, free {mib('MemFree')}, available {mib('MemAvailable')};"
        f" swap total {mib('SwapTotal')}, free {mib('SwapFree')}"
    )
