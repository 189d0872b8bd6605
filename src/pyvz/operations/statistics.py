"""Counters of environments, as `prlctl statistics` prints them.

guest.cpu.time                      microseconds
guest.ram.{usage,cached,total,swap} MiB      guest.ram.{major_fault,oom_kill,limit_hit}  times
guest.ram.ksm_{merged,profit}       bytes, where equal pages are merged
guest.processes
guest.fs0.{name,total,free}         MiB of the root disk
devices.disk.{read,write}_total     bytes
net.nicN.{pkts,bytes}_{in,out}      of the card netN, since the last start
net.classful.traffic[.ipv4|.ipv6]   class, bytes and packets in, bytes and packets out
host.cpu.time                       microseconds that all of a virtual machine's QEMU took
ubc.NAME                            held maxheld barrier limit failcnt; by a filter "ubc..." only

What a virtual machine has besides, or instead: machinefigures.py.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterable, Sequence

from pyvz.errors import EnvironmentNotFound, VZError
from pyvz.model.environment import Environment, Kind
from pyvz.operations import beancounters, fields, machinefigures, samepage, traffic
from pyvz.operations.fields import ALIVE, Source
from pyvz.operations.node import Node, StatusReader
from pyvz.units import MIB, UNLIMITED
from pyvz.vm.spec import memory_of

Pair = tuple[str, str]
_KIB_OF_MIB = 1024


def statistics(
    node: Node, refs: Sequence[str], filters: Sequence[str] = ()
) -> list[tuple[str, list[Pair]]]:
    """Return (uuid, [(counter, value)]) of the environments; `filters` are * patterns of names.

    What no filter can match is not looked at.  Raises EnvironmentNotFound.
    """
    statuses = StatusReader(node)
    answer = []
    for env in _resolved(node, refs):
        source = Source(node, env, statuses)
        pairs: list[Pair] = []
        for prefix, read in _GROUPS[env.kind]:
            if asked(filters, prefix):
                pairs += read(source)
        answer.append((env.uuid, [pair for pair in pairs if _wanted(pair, filters)]))
    return answer


def asked(filters: Sequence[str], prefix: str) -> bool:
    """Whether a filter can match a name that begins with PREFIX; what is dear must be named."""
    if not filters:
        return prefix not in _NAMED
    literals = [min((text.split(char)[0] for char in "*?["), key=len) for text in filters]
    if prefix in _NAMED:
        return any(literal.startswith(prefix) for literal in literals)
    return any(literal.startswith(prefix) or prefix.startswith(literal) for literal in literals)


def _resolved(node: Node, refs: Sequence[str]) -> Iterable[Environment]:
    if not refs:
        return node.registry.environments()
    try:
        return [node.registry.resolve(ref) for ref in refs]
    except EnvironmentNotFound:
        raise
    except VZError as error:
        raise EnvironmentNotFound(error.message) from error


def _guest(source: Source) -> list[Pair]:
    usage, counted = source.usage, source.counters
    limit = usage.memory_limit
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = host if limit is None or limit >= UNLIMITED else min(limit, host)
    if source.env.kind == Kind.VM:
        total = memory_of(source.config) * MIB
    return _pairs(
        (
            ("guest.cpu.time", None if usage.cpu_ns is None else usage.cpu_ns // 1000),
            ("guest.ram.usage", _mib(usage.memory)),
            ("guest.ram.cached", _mib(counted.file)),
            ("guest.ram.total", total // MIB if source.status in ALIVE else None),
            ("guest.ram.swap", _mib(usage.swap)),
            ("guest.ram.major_fault", counted.major),
            ("guest.ram.oom_kill", usage.oom_kills),
            ("guest.ram.limit_hit", usage.memory_failures),
            ("guest.processes", usage.pids),
        )
    )


def _machine(source: Source) -> list[Pair]:
    """Return what is seen of a machine from outside, and in its place what its guest says."""
    seen = dict(_guest(source))
    return list((seen | dict(machinefigures.guest(source))).items())


def _host(source: Source) -> list[Pair]:
    used = source.usage.cpu_ns
    return _pairs((("host.cpu.time", None if used is None else used // 1000),))


def _disk(source: Source) -> list[Pair]:
    usage = source.usage
    return _pairs(
        (
            ("devices.disk.read_total", usage.io_read),
            ("devices.disk.write_total", usage.io_written),
        )
    )


def _filesystem(source: Source) -> list[Pair]:
    if source.status not in ALIVE:  # not for statistics is the disk of a stopped one opened
        return []
    space = fields.disk_space(source)
    if space is None or space["usage"] is None or space["hardlimit"] is None:
        return []
    total, used = space["hardlimit"] // _KIB_OF_MIB, space["usage"] // _KIB_OF_MIB
    return [
        ("guest.fs0.name", "/"),
        *_pairs((("guest.fs0.total", total), ("guest.fs0.free", max(total - used, 0)))),
    ]


def _merged(source: Source) -> list[Pair]:
    return _pairs(samepage.counters(source.node, source.env.uuid, source.init).items())


def _traffic(source: Source) -> list[Pair]:
    return traffic.statistics(source.node, source.env.uuid)


def _cards(source: Source) -> list[Pair]:
    return traffic.cards(source.node, source.env.uuid)


def _beancounters(source: Source) -> list[Pair]:
    return [
        (
            _BEANCOUNTERS + each.name,
            f"{each.held or 0} {each.maxheld or 0} {each.barrier} {each.limit} {each.failcnt or 0}",
        )
        for each in beancounters.all_of(source)
    ]


def _pairs(rows: Iterable[tuple[str, int | None]]) -> list[Pair]:
    return [(name, str(value)) for name, value in rows if value is not None]


def _mib(value: int | None) -> int | None:
    return None if value is None else value // MIB


def _wanted(pair: Pair, filters: Sequence[str]) -> bool:
    return not filters or any(fnmatch.fnmatchcase(pair[0], pattern) for pattern in filters)


_BEANCOUNTERS = "ubc."
_GUEST_DISKS = "guest.fs"
_NAMED = frozenset({_BEANCOUNTERS, _GUEST_DISKS})
_Group = tuple[str, Callable[[Source], list[Pair]]]
_BOTH: tuple[_Group, ...] = (
    ("guest.ram.ksm_", _merged),
    ("net.nic", _cards),
    ("net.classful.traffic", _traffic),
    (_BEANCOUNTERS, _beancounters),
)
_GROUPS: dict[Kind, tuple[_Group, ...]] = {
    Kind.CT: (("guest.", _guest), ("devices.disk.", _disk), ("guest.fs0.", _filesystem), *_BOTH),
    Kind.VM: (
        ("guest.", _machine),
        ("host.cpu.", _host),
        (_GUEST_DISKS, machinefigures.file_systems),
        ("devices.disk.", _disk),
        ("devices.", machinefigures.drives),
        *_BOTH,
    ),
}
