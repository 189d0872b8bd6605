"""Where a domain runs: its mask of processors, and the NUMA nodes that its memory comes from.

All processors of a domain share one mask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from pyvz.gateway import domain, domainxml, failure
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import INT, STRING, Typed
from pyvz.model.task import Progress
from pyvz.operations import machinethreads

Key = dict[str, Any]

LIVE: Final = 1
STRICT: Final = 0  # mode of NUMA nodes: from no other ones
_MODE, _NODES = "numa_mode", "numa_nodeset"
_ANY: Final = {"", "all", "auto"}


def domain_get_vcpus(call: Call, *, dom: Key, maxinfo: int, maplen: int) -> Values:
    """Where its processors run: a container's run wherever its mask lets them."""
    node, found = call.office.node, domain.find_running(call.office.node, dom)
    if domain.is_machine(found):
        threads = machinethreads.processors(node, found.env.uuid)[: max(0, maxinfo)]
        machine = [
            {"number": number, "state": 1, "cpu": each.processor, "cpu_time": each.time}
            for number, each in enumerate(threads)
        ]
        return {"info": machine, "cpumaps": _map(found, maplen) * len(machine)}
    usage = node.cgroups.usage(found.env.uuid)
    count = min(maxinfo, domainxml.processors(found))
    infos = [
        {
            "number": number, "state": 1, "cpu": number % (os.cpu_count() or 1),
            "cpu_time": (usage.cpu_ns or 0) // max(1, count),
        }
        for number in range(count)
    ]  # fmt: skip
    return {"info": infos, "cpumaps": _map(found, maplen) * count}


def domain_get_vcpu_pin_info(
    call: Call, *, dom: Key, ncpumaps: int, maplen: int, flags: int
) -> Values:
    """On which of the node's processors each may run."""
    _ = flags
    found = domain.find(call.office.node, dom)
    count = min(ncpumaps, domainxml.processors(found))
    return {"cpumaps": _map(found, maplen) * count, "num": count}


def domain_get_emulator_pin_info(call: Call, *, dom: Key, maplen: int, flags: int) -> Values:
    """On which processors what is around a machine runs: where the machine does."""
    _ = flags
    return {"cpumaps": _map(domain.find(call.office.node, dom), maplen), "ret": 1}


def domain_pin_vcpu(call: Call, progress: Progress, *, dom: Key, vcpu: int, cpumap: bytes) -> None:
    """Choose the processors of the node that a running one may use."""
    domain_pin_vcpu_flags(call, progress, dom=dom, vcpu=vcpu, cpumap=cpumap, flags=LIVE)


def domain_pin_vcpu_flags(
    call: Call, progress: Progress, *, dom: Key, vcpu: int, cpumap: bytes, flags: int
) -> None:
    """Choose the processors of the node for a domain with one; of several they share the mask."""
    found = _found(call, dom, flags)
    count = domainxml.processors(found)
    if vcpu >= count:
        raise Failure(failure.INVALID_ARGUMENT, f"{found.env.name} has no processor {vcpu}")
    mask = _spelled(cpumap)
    if count > 1 and mask != _spelled(_map(found, len(cpumap))):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The {count} processors of {found.env.name} share one mask: set it with"
            f" prlctl set --cpumask {mask}, or by <vcpu cpuset='{mask}'>",
        )
    change(call, progress, dom, ("cpumask", mask))


def domain_pin_emulator(
    call: Call, progress: Progress, *, dom: Key, cpumap: bytes, flags: int
) -> None:
    """Choose the processors for all that a domain is: what is around it runs where it does."""
    _found(call, dom, flags)
    change(call, progress, dom, ("cpumask", _spelled(cpumap)))


def domain_get_numa_parameters(call: Call, *, dom: Key, nparams: int, flags: int) -> Values:
    """The NUMA nodes of its memory; nparams 0 asks how many settings there are."""
    _ = flags
    mask = domain.find(call.office.node, dom).config.cpu.nodemask
    nodes = "" if mask in _ANY else str(mask)
    found = [Typed(_MODE, INT, STRICT), Typed(_NODES, STRING, nodes)]
    return {"params": found[:nparams], "nparams": len(found)}


def domain_set_numa_parameters(
    call: Call, progress: Progress, *, dom: Key, params: Sequence[Typed], flags: int
) -> None:
    """Choose the NUMA nodes of its memory; only strictly, from no other ones."""
    _found(call, dom, flags)
    values = {each.field: each.value for each in params}
    if unknown := values.keys() - {_MODE, _NODES}:
        raise Failure(failure.OPERATION_UNSUPPORTED, f"{', '.join(unknown)} cannot be set here")
    if int(values.get(_MODE, STRICT)) != STRICT:
        raise Failure(
            failure.OPERATION_UNSUPPORTED, "Memory comes from its NUMA nodes strictly (--mode)"
        )
    if _NODES in values:
        change(call, progress, dom, ("nodemask", str(values[_NODES]) or "all"))


def _found(call: Call, dom: Key, flags: int) -> Domain:
    look = domain.find_running if flags & LIVE else domain.find
    return look(call.office.node, dom)


def _map(found: Domain, length: int) -> bytes:
    """Return the processors on which it may run as a bit map of LENGTH bytes."""
    numbers = _listed(str(found.config.cpu.mask or ""), os.cpu_count() or 1)
    bits = bytearray(max(0, length))
    for number in numbers:
        if number // 8 < len(bits):
            bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def _spelled(bits: bytes) -> str:
    """Return a bit map as the numbers of the node's processors in it; raises Failure for none."""
    count = os.cpu_count() or 1
    numbers = [n for n in range(min(count, len(bits) * 8)) if bits[n // 8] >> n % 8 & 1]
    if not numbers:
        raise Failure(failure.INVALID_ARGUMENT, "The mask names no processor of this node")
    return "all" if len(numbers) == count else ",".join(map(str, numbers))


def _listed(text: str, count: int) -> list[int]:
    if text in _ANY:
        return list(range(count))
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
