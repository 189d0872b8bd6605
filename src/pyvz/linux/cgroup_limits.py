"""What to write into which cgroup file for given limits: pure functions, for v1 and for v2.

Sources: Documentation/admin-guide/cgroup-v1/*.rst, cgroup-v2.rst; libvzctl (lib/cgroup.c) for the
scales of cpuunits and ioprio.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pyvz.linux.deviceprogram import merge
from pyvz.model.limits import UNLIMITED, DeviceRule, Limits

CPU_PERIOD = 100_000  # microseconds
IO_WEIGHTS = (320, 365, 410, 460, 500, 550, 600, 640)  # ioprio 0..7


class Write(NamedTuple):
    """One write: the attribute of Limits it is for, the v1 controller, the file, the text."""

    field: str
    controller: str
    file: str
    text: str


class Unapplied(NamedTuple):
    """A limit that this kernel cannot keep, and why."""

    field: str
    reason: str


NO_BURST = Unapplied("cpu_burst", "the kernel has no bursts of CPU time (Linux 5.14)")


def cpu_shares(units: int) -> int:
    """Return the v1 cpu.shares (2 to 262144, usually 1024) for UNITS cpuunits (usually 1000)."""
    return min(max(units * 1024 // 1000, 2), 262144)


def cpu_weight(units: int) -> int:
    """Return the v2 cpu.weight (1 to 10000, usually 100) for UNITS cpuunits (usually 1000)."""
    return min(max(units // 10, 1), 10000)


def cpu_quota(percent: int) -> int | None:
    """Return the microseconds of CPU_PERIOD for PERCENT (100: one CPU); None: no limit."""
    if percent <= 0 or percent >= UNLIMITED:
        return None
    return max(percent * CPU_PERIOD // 100, 1000)  # the kernel's least is 1 ms


def _rate(value: int) -> int | None:
    return None if value <= 0 or value >= UNLIMITED else value


def v1_memory(limits: Limits, memory: int, memsw: int | None) -> list[Write]:
    """Return the memory writes; MEMORY and MEMSW are the present limits (memsw None: no file).

    The kernel demands memory <= memory+swap at every moment, so a memory limit above the present
    sum needs the sum raised first; in every other case the memory limit goes first.
    """
    if limits.memory is None and limits.swap is None:
        return []
    wanted = memory if limits.memory is None else limits.memory
    first = Write("memory", "memory", "memory.limit_in_bytes", _v1_bytes(wanted))
    if memsw is None:
        return [first] if limits.memory is not None else []
    both = UNLIMITED
    if UNLIMITED not in (wanted, limits.swap):
        swap = limits.swap if limits.swap is not None else _swap(memory, memsw)
        both = min(wanted + swap, UNLIMITED)
    second = Write(
        "memory" if limits.swap is None else "swap",
        "memory",
        "memory.memsw.limit_in_bytes",
        _v1_bytes(both),
    )
    return [second, first] if wanted > memsw else [first, second]


def _swap(memory: int, memsw: int) -> int:
    return UNLIMITED if memsw >= UNLIMITED else max(memsw - memory, 0)


def _v1_bytes(value: int) -> str:
    return "-1" if value >= UNLIMITED else str(value)


def cpu_burst(percent: int) -> int:
    """Return the microseconds of a burst beyond the quota."""
    return max(percent, 0) * CPU_PERIOD // 100


def with_burst(writes: Sequence[Write], limits: Limits, file: str) -> list[Write]:
    """Return the writes of the quota with those of the burst, which must never be above it."""
    if limits.cpu_percent is None and limits.cpu_burst is None:
        return list(writes)
    none = Write("cpu_burst", "cpu", file, "0")
    if not limits.cpu_burst:
        return [none, *writes]
    return [none, *writes, none._replace(text=str(cpu_burst(limits.cpu_burst)))]


def v1_cpu(limits: Limits) -> list[Write]:
    """Return the writes for weight and quota on v1."""
    writes = []
    if limits.cpu_weight is not None:
        shares = str(cpu_shares(limits.cpu_weight))
        writes.append(Write("cpu_weight", "cpu", "cpu.shares", shares))
    if limits.cpu_percent is not None:
        quota = cpu_quota(limits.cpu_percent)
        if quota is not None:
            writes.append(Write("cpu_percent", "cpu", "cpu.cfs_period_us", str(CPU_PERIOD)))
        text = str(-1 if quota is None else quota)
        writes.append(Write("cpu_percent", "cpu", "cpu.cfs_quota_us", text))
    return writes


def v1_pids(limits: Limits) -> list[Write]:
    """Return the write for the number of processes, which is the same on v2."""
    if limits.pids is None:
        return []
    return [Write("pids", "pids", "pids.max", _v2_number(limits.pids))]


def v1_io(
    limits: Limits,
    disks: Sequence[tuple[int, int]],
    present: Mapping[str, Iterable[str]],
) -> list[Write]:
    """Return the throttle writes; PRESENT maps a file to the "major:minor" it has rules for.

    Rules for disks that are not asked for any more are taken away.
    """
    writes = []
    for field, unit, value in (
        ("io_bps", "bps", limits.io_bps),
        ("io_iops", "iops", limits.io_iops),
    ):
        if value is None:
            continue
        for way in ("read", "write"):
            file = f"blkio.throttle.{way}_{unit}_device"
            wanted = dict.fromkeys(present.get(file, ()), 0)
            wanted.update({f"{a}:{b}": _rate(value) or 0 for a, b in disks})
            writes += [Write(field, "blkio", file, f"{d} {n}") for d, n in wanted.items()]
    return writes


def v1_devices(rules: Sequence[DeviceRule], present: Sequence[DeviceRule]) -> list[Write]:
    """Return the writes that turn the PRESENT rules into RULES, never touching the rest.

    ("a" may not be written once a cgroup has children, and would cut off devices for a moment.)
    """
    now = {rule[:3]: set(rule.access) for rule in merge(present)}
    then = {rule[:3]: set(rule.access) for rule in merge(rules)}
    writes = []
    for key in {**now, **then}:
        less = "".join(sorted(now.get(key, set()) - then.get(key, set())))
        more = "".join(sorted(then.get(key, set()) - now.get(key, set())))
        if less:
            writes.append(_device("devices.deny", DeviceRule(*key, less)))
        if more:
            writes.append(_device("devices.allow", DeviceRule(*key, more)))
    return writes


def _device(file: str, rule: DeviceRule) -> Write:
    return Write("devices", "devices", file, str(rule))


def v2_writes(limits: Limits, disks: Sequence[tuple[int, int]]) -> list[Write]:
    """Return the writes for everything but devices, I/O weight and cpusets on v2."""
    writes = v1_pids(limits)
    for field, file, size in (
        ("memory", "memory.max", limits.memory),
        ("swap", "memory.swap.max", limits.swap),
    ):
        if size is not None:
            writes.append(Write(field, "memory", file, _v2_number(size)))
    if limits.cpu_weight is not None:
        weight = str(cpu_weight(limits.cpu_weight))
        writes.append(Write("cpu_weight", "cpu", "cpu.weight", weight))
    if limits.cpu_percent is not None:
        quota = cpu_quota(limits.cpu_percent)
        text = f"{'max' if quota is None else quota} {CPU_PERIOD}"
        writes.append(Write("cpu_percent", "cpu", "cpu.max", text))
    return writes + v2_io(limits, disks)


def v2_io(limits: Limits, disks: Sequence[tuple[int, int]]) -> list[Write]:
    """Return the io.max writes; keys that are not named keep their value."""
    writes = []
    for field, unit, value in (
        ("io_bps", "bps", limits.io_bps),
        ("io_iops", "iops", limits.io_iops),
    ):
        if value is not None:
            rate = _rate(value) or "max"
            keys = f"r{unit}={rate} w{unit}={rate}"
            writes += [Write(field, "io", "io.max", f"{a}:{b} {keys}") for a, b in disks]
    return writes


def _v2_number(value: int) -> str:
    return "max" if value >= UNLIMITED else str(value)
