"""From the configuration of a container to the limits that the cgroup layer applies (pure).

Rules of vzctl.md section 2.1 and config.md sections 3.2, 3.3 and 9.  What is not set means no limit
and is said so explicitly: the result describes the container wholly, so that taking a limit away
and starting afresh give the same.  Devices are not decided here (container/devices.py).
"""

from __future__ import annotations

from pyvz.model.config import Config
from pyvz.model.grammar import Pair
from pyvz.model.limits import Limits
from pyvz.units import UNLIMITED, pages_to_bytes


def limits_of(config: Config, *, cpus: int, mhz: float = 0.0) -> Limits:
    """Return the limits that CONFIG means on a node with CPUS processors of MHZ each.

    mhz: needed only for CPULIMIT_MHZ; 0 when the node does not tell, and then that one is ignored.
    """
    return Limits(
        memory=memory_of(config),
        swap=swap_of(config),
        cpu_weight=cpu_weight(config),
        cpu_percent=cpu_percent(config, cpus=cpus, mhz=mhz),
        cpus=_usable(config.cpu.mask),
        mems=_usable(config.cpu.nodemask),
        pids=_count(config.memory.numproc),
        io_weight=config.io.priority,
        io_bps=_zero_if_unlimited(config.io.limit),
        io_iops=_zero_if_unlimited(config.io.operations),
        devices=None,
        cpu_burst=cpu_burst(config, cpus=cpus, mhz=mhz),
    )


def memory_of(config: Config) -> int:
    """Return the bytes of RAM: the limit of PHYSPAGES, else (UBC only) the PRIVVMPAGES barrier."""
    physpages = config.memory.physpages
    if physpages is not None and physpages.limit < UNLIMITED:
        return pages_to_bytes(physpages.limit)
    if config.memory.privvmpages is not None:
        return pages_to_bytes(config.memory.privvmpages.barrier)
    return UNLIMITED


def swap_of(config: Config) -> int:
    """Return the bytes of swap beside the RAM.

    A configuration that limits the memory and says nothing of swap has none, as in VSwap mode; so
    has one that has beancounters only.
    """
    if config.memory.swappages is not None:
        return pages_to_bytes(config.memory.swappages.limit)
    return UNLIMITED if memory_of(config) >= UNLIMITED else 0


def cpu_weight(config: Config) -> int:
    """Return the cpuunits: CPUUNITS, else the old CPUWEIGHT, else 1000."""
    old = config.cpu.weight
    if config.is_set("cpu.units") or not old:
        return config.cpu.units
    return max(8, old)


def cpu_percent(config: Config, *, cpus: int, mhz: float = 0.0) -> int:
    """Return the limit in percent of one CPU, 0 for none.

    CPULIMIT_MHZ is 100 x MHz x ncpu / total MHz.  The limit is clamped to all CPUs of the node, and
    CPUS is a quota as well: what N visible CPUs can give.
    """
    wanted = config.cpu.limit
    if not wanted and config.cpu.limit_mhz and mhz > 0:
        wanted = max(1, round(100 * config.cpu.limit_mhz / mhz))
    visible = config.cpu.cpus
    if 0 < visible < cpus:
        wanted = min(wanted or visible * 100, visible * 100)
    return min(wanted, cpus * 100)


def cpu_burst(config: Config, *, cpus: int, mhz: float = 0.0) -> int:
    """Return the percent above the CPU limit that a burst may have: BURST_CPULIMIT less the limit.

    The kernel allows no burst above twice the limit (cpu.max.burst in cgroup-v2.rst).
    """
    limit, most = cpu_percent(config, cpus=cpus, mhz=mhz), config.cpu.burst_limit or 0
    return min(most - limit, limit) if 0 < limit < most else 0


def _usable(mask: str) -> str:
    """Return a cpuset list; "auto" leaves the choice to the node: everything."""
    return "" if mask == "auto" else mask


def _count(pair: Pair | None) -> int:
    """Return the number that a pair limits to.  NUMPROC=0 is no limit: nothing could start."""
    return pair.limit if pair is not None and pair.limit > 0 else UNLIMITED


def _zero_if_unlimited(value: int) -> int:
    return 0 if value >= UNLIMITED else value
