"""Figures of a running virtual machine for `prlctl statistics`, by the original's names.

guest.cpu.time, guest.vcpuN.time            microseconds that its processors ran
guest.ram.{usage,cached,total,swap_in,swap_out,balloon_actual}   MiB, by the guest's own word
guest.ram.{minor,major}_fault               times
guest.fsN.{name,total,free,disk.M}          MiB, by its agent; by a filter "guest.fs..." only
devices.BUSN.{read,write}_{requests,total}  of the drive at position N of that bus; total: bytes

What the guest tells is its own business: numbers are made to fit, texts are cut, lists are short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from pyvz.errors import VZError
from pyvz.operations import machineguest, machinememory, machinethreads
from pyvz.operations.fields import Source
from pyvz.units import MIB
from pyvz.vm import balloon, blockfigures, guestword
from pyvz.vm.monitor import Monitor

Pair = tuple[str, str]
_MICROSECOND: Final = 1000  # nanoseconds
_AGENT: Final = 5.0  # seconds for the agent to tell of its file systems
_MOST: Final = 64  # file systems, and disks of one
_LONGEST: Final = 255


def guest(source: Source) -> list[Pair]:
    """Return what its processors have done, and its memory; nothing when it does not run on."""
    return [*_processors(source), *_memory(source)]


def _processors(source: Source) -> list[Pair]:
    if _monitor(source) is None:
        return []
    threads = machinethreads.processors(source.node, source.env.uuid)
    times = [each.time // _MICROSECOND for each in threads]
    rows = [(f"guest.vcpu{number}.time", value) for number, value in enumerate(times)]
    return _pairs([("guest.cpu.time", sum(times)), *rows] if times else [])


def _memory(source: Source) -> list[Pair]:
    told = machinememory.said(source.node, source.env.uuid)
    if told is None:
        return []
    rows = [("guest.ram.balloon_actual", told.actual // MIB)]
    if told.updated:
        used = told.total - (told.available or told.free + told.caches)
        rows += [
            ("guest.ram.usage", max(0, used) // MIB),
            ("guest.ram.cached", told.caches // MIB),
            ("guest.ram.total", told.total // MIB),
            ("guest.ram.swap_in", told.swap_in // MIB),
            ("guest.ram.swap_out", told.swap_out // MIB),
            ("guest.ram.minor_fault", told.minor),
            ("guest.ram.major_fault", told.major),
        ]
    return _pairs(rows)


def drives(source: Source) -> list[Pair]:
    """Return what its drives have moved since it was started."""
    monitor = _monitor(source)
    if monitor is None:
        return []
    counted = blockfigures.moved(monitor, balloon.PATIENCE)
    rows: list[tuple[str, int]] = []
    for drive in source.config.machine.drives:
        one = counted.get(drive.name)
        if one is not None:
            name = f"devices.{drive.iface}{drive.position}"
            rows += [
                (f"{name}.read_requests", one.reads),
                (f"{name}.read_total", one.read),
                (f"{name}.write_requests", one.writes),
                (f"{name}.write_total", one.written),
            ]
    return _pairs(rows)


def file_systems(source: Source) -> list[Pair]:
    """Return the file systems that its agent tells of; nothing where there is none."""
    with suppress(VZError), machineguest.agent(source.node, source.env, patience=_AGENT) as talk:
        return list(_told(talk.call("guest-get-fsinfo", timeout=_AGENT)))
    return []


def _told(answer: Any) -> Iterator[Pair]:  # noqa: ANN401  the guest's word
    for number, each in enumerate(guestword.rows(answer, most=_MOST)):
        name = f"guest.fs{number}"
        total, used = (guestword.number(each.get(f"{x}-bytes")) for x in ("total", "used"))
        yield f"{name}.name", guestword.text(each.get("mountpoint", ""), longest=_LONGEST)
        yield f"{name}.total", str(total // MIB)
        yield f"{name}.free", str(max(0, total - used) // MIB)
        for index, disk in enumerate(guestword.rows(each.get("disk"), most=_MOST)):
            yield f"{name}.disk.{index}", guestword.text(disk.get("dev", ""), longest=_LONGEST)


def _monitor(source: Source) -> Monitor | None:
    """Return its monitor when it is there already: figures wait for nobody."""
    return source.node.machines.connected(source.env.uuid)


def _pairs(rows: Iterable[tuple[str, int]]) -> list[Pair]:
    return [(name, str(value)) for name, value in rows]
