"""The NUMA nodes of the machine that have memory and processors."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.linux import cgroupfs

SYS = "/sys/devices/system/node"


class NumaFacts(NamedTuple):
    """number, processors as a list ("0-3"), bytes of memory."""

    number: int
    cpus: str
    total: int


def nodes(folder: str = SYS) -> tuple[NumaFacts, ...]:
    """Return the nodes, by number; one on a machine without NUMA, none where nothing tells."""
    found = []
    for name in cgroupfs.children(folder):
        number = name.removeprefix("node")
        if number == name or not number.isdigit():
            continue
        cpus = (cgroupfs.read(f"{folder}/{name}/cpulist") or "").strip()
        total = 0
        for line in (cgroupfs.read(f"{folder}/{name}/meminfo") or "").splitlines():
            words = line.split()  # "Node 0 MemTotal: 24684096 kB"
            if len(words) >= 4 and words[2] == "MemTotal:":
                total = int(words[3]) * 1024
        if cpus and total:
            found.append(NumaFacts(int(number), cpus, total))
    return tuple(sorted(found))
