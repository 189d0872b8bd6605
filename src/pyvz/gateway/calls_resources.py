"""Memory, processors, shares, disk traffic: the limits, looked at and changed.

Typed parameters come in two shapes: with no room their number is asked for, else their values.
Everything is put in force and saved at once, whatever the flags "live" and "config" say; a flag for
"live" of one that does not run is refused, as clients expect.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyvz.gateway import domain, domaintuning, domainxml, failure, guestview
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.domaintuning import PERIOD
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import LLONG, UINT, ULLONG, Typed
from pyvz.model.task import Progress
from pyvz.units import KIB, PAGE_SIZE, UNLIMITED

Key = dict[str, Any]

LIVE: Final = 1
MAXIMUM: Final = 4
GUEST: Final = 8
SCHEDULER: Final = "posix"
NO_LIMIT: Final = 9007199254740991  # KiB; what clients show as "unlimited"
DEFAULT_IO_WEIGHT: Final = 500


def domain_set_memory(call: Call, progress: Progress, *, dom: Key, memory: int) -> None:
    """Limit the memory of a running one, in KiB."""
    _set_memory(call, progress, dom, memory, LIVE)


def domain_set_memory_flags(
    call: Call, progress: Progress, *, dom: Key, memory: int, flags: int
) -> None:
    """Limit the memory, in KiB; the most it may have (flag 4) is the same limit."""
    _set_memory(call, progress, dom, memory, flags)


def domain_set_max_memory(call: Call, progress: Progress, *, dom: Key, memory: int) -> None:
    """Limit the memory, in KiB."""
    _set_memory(call, progress, dom, memory, 0)


def domain_set_vcpus(call: Call, progress: Progress, *, dom: Key, nvcpus: int) -> None:
    """Set how many processors it has."""
    domain_set_vcpus_flags(call, progress, dom=dom, nvcpus=nvcpus, flags=LIVE)


def domain_set_vcpus_flags(
    call: Call, progress: Progress, *, dom: Key, nvcpus: int, flags: int
) -> None:
    """Set how many processors it has; the most that is possible (flag 4) is the node's.

    With flag 8 it has what it had, and its guest uses so many of them.
    """
    if flags & GUEST:
        found = domain.find_running(call.office.node, dom)
        guestview.use_processors(call.office.node, found, nvcpus)
        return
    _check_live(call, dom, flags)
    if flags & MAXIMUM:
        if nvcpus != os.cpu_count():
            raise Failure(
                failure.OPERATION_UNSUPPORTED,
                f"The most processors of a domain are the node's {os.cpu_count()}",
            )
        return
    change(call, progress, dom, ("cpus", str(nvcpus)))


def domain_get_scheduler_type(call: Call, *, dom: Key) -> Values:
    """The name of the scheduler, and how many settings it has."""
    return {"type": SCHEDULER, "nparams": len(_scheduler(domain.find(call.office.node, dom)))}


def domain_get_scheduler_parameters(call: Call, *, dom: Key, nparams: int) -> Values:
    """Shares and quota."""
    return {"params": _scheduler(domain.find(call.office.node, dom))[:nparams]}


def domain_get_scheduler_parameters_flags(
    call: Call, *, dom: Key, nparams: int, flags: int
) -> Values:
    """Shares and quota."""
    _ = flags
    return domain_get_scheduler_parameters(call, dom=dom, nparams=nparams)


def domain_set_scheduler_parameters(
    call: Call, progress: Progress, *, dom: Key, params: Sequence[Typed]
) -> None:
    """Set shares and quota."""
    domain_set_scheduler_parameters_flags(call, progress, dom=dom, params=params, flags=0)


def domain_set_scheduler_parameters_flags(
    call: Call, progress: Progress, *, dom: Key, params: Sequence[Typed], flags: int
) -> None:
    """Set shares (cpuunits) and quota (cpulimit)."""
    _check_live(call, dom, flags)
    found = domain.find(call.office.node, dom)
    period = next((int(each.value) for each in params if each.field == "vcpu_period"), PERIOD)
    cpus = {"global_quota": 1, "vcpu_quota": domainxml.processors(found)}
    given = [each for each in params if each.field != "vcpu_period"]
    change(call, progress, dom, *(_scheduling(each, period, cpus) for each in given))


def domain_get_memory_parameters(call: Call, *, dom: Key, nparams: int, flags: int) -> Values:
    """The limits of memory and swap, in KiB."""
    _ = flags
    config = domain.find(call.office.node, dom).config
    swap = config.memory.swappages
    limit = _kib(config.memory.physpages)
    both = NO_LIMIT if limit == NO_LIMIT or swap is None else limit + _kib(swap)
    found = [
        Typed("hard_limit", ULLONG, limit),
        Typed("soft_limit", ULLONG, NO_LIMIT),
        Typed("swap_hard_limit", ULLONG, min(both, NO_LIMIT)),
    ]
    return {"params": found[:nparams], "nparams": len(found)}


def domain_set_memory_parameters(
    call: Call, progress: Progress, *, dom: Key, params: Sequence[Typed], flags: int
) -> None:
    """Set the limits of memory and of memory with swap, in KiB."""
    _check_live(call, dom, flags)
    values = {each.field: int(each.value) for each in params}
    unknown = values.keys() - {"hard_limit", "swap_hard_limit"}
    if unknown:
        raise Failure(
            failure.OPERATION_UNSUPPORTED, f"{', '.join(sorted(unknown))} cannot be set here"
        )
    found = domain.find(call.office.node, dom)
    limit = values.get("hard_limit", domainxml.memory_limit(found) // KIB)
    options: list[tuple[str, str | None]] = []
    if "hard_limit" in values:
        options.append(("memsize", f"{limit}K"))
    if "swap_hard_limit" in values:
        options.append(("swap", f"{max(0, values['swap_hard_limit'] - limit)}K"))
    change(call, progress, dom, *options)


def domain_get_blkio_parameters(call: Call, *, dom: Key, nparams: int, flags: int) -> Values:
    """The weight of its disk traffic."""
    _ = flags
    priority = domain.find(call.office.node, dom).config.io.priority
    weight = DEFAULT_IO_WEIGHT if priority is None else domaintuning.weight_of(priority)
    found = [Typed("weight", UINT, weight)]
    return {"params": found[:nparams], "nparams": len(found)}


def domain_set_blkio_parameters(
    call: Call, progress: Progress, *, dom: Key, params: Sequence[Typed], flags: int
) -> None:
    """Set the weight of its disk traffic, 100 to 1000, as one of the priorities 0 to 7."""
    _check_live(call, dom, flags)
    for each in params:
        if each.field != "weight":
            raise Failure(failure.OPERATION_UNSUPPORTED, f"{each.field} cannot be set here")
        priority = domaintuning.priority_of(int(each.value))
        change(call, progress, dom, ("ioprio", str(priority)))


def _set_memory(call: Call, progress: Progress, dom: Key, memory: int, flags: int) -> None:
    _check_live(call, dom, flags)
    change(call, progress, dom, ("memsize", f"{memory}K"))


def _check_live(call: Call, dom: Key, flags: int) -> None:
    if flags & LIVE:
        domain.find_running(call.office.node, dom)


def _scheduler(found: Domain) -> list[Typed]:
    limit = found.config.cpu.limit or 0
    quota = limit * PERIOD // 100 // domainxml.processors(found) if limit else -1
    return [
        Typed("cpu_shares", ULLONG, found.config.cpu.units or 1000),
        Typed("vcpu_period", ULLONG, PERIOD),
        Typed("vcpu_quota", LLONG, quota),
    ]


def _scheduling(each: Typed, period: int, cpus: Mapping[str, int]) -> tuple[str, str]:
    """Return the option of `prlctl set`; CPUS: for how many processors each quota counts."""
    value = int(each.value)
    if each.field == "cpu_shares":
        return "cpuunits", str(value)
    if each.field in cpus:
        return "cpulimit", str(domaintuning.percent_of(value, period, cpus[each.field]))
    raise Failure(
        failure.OPERATION_UNSUPPORTED,
        f"{each.field} cannot be set here: cpu_shares, vcpu_quota and global_quota can",
    )


def _kib(pair: Any) -> int:  # noqa: ANN401  a Pair of pages, or None
    if pair is None or pair.limit >= UNLIMITED:
        return NO_LIMIT
    return int(pair.limit) * PAGE_SIZE // KIB
