"""User beancounters from today's cgroups: what each of them holds.

    kmemsize        memory of the kernel          dcachesize    reclaimable slab (v2)
    lockedpages     unevictable memory            shmpages      shared memory and tmpfs
    privvmpages     memory without a file         physpages     all memory, page cache too
    oomguarpages    memory without a file, and swap
    swappages       swap                          numproc       processes and threads
    tcpsndbuf, tcprcvbuf    half each of the buffers of sockets: the kernel counts both as one
    numtcpsock, numothersock    sockets           numfile       descriptors of files

The others are counted by nobody any more.  Sizes are those of the original (pages of 4 KiB, bytes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvz.model.beancounter import NAMES, Beancounter, Held
from pyvz.units import PAGE_SIZE, UNLIMITED

if TYPE_CHECKING:
    from pyvz.operations.fields import Source


def of(source: Source, name: str) -> Beancounter | None:
    """Return one beancounter of an environment; None when nothing is known of it."""
    reader = _READERS.get(name)
    held = reader(source) if reader else Held()
    pair = getattr(source.config.memory, name, None)
    if held.now is None and pair is None:
        return None
    in_force = UNLIMITED if held.limit is None else held.limit
    return Beancounter(
        name,
        held.now,
        held.now if held.most is None else held.most,
        pair.barrier if pair else in_force,
        pair.limit if pair else in_force,
        held.failures,
    )


def all_of(source: Source) -> list[Beancounter]:
    """Return every beancounter that something is known of, in the order of the original."""
    return [found for name in NAMES if (found := of(source, name)) is not None]


def count_files(pids: Iterable[int]) -> int:
    """Return how many descriptors the processes have open."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    return total


def _pages(size: int | None) -> int | None:
    if size is None or size >= UNLIMITED:
        return size
    return size // PAGE_SIZE


def _numproc(source: Source) -> Held:
    usage = source.usage
    return Held(usage.pids, usage.pids_peak, usage.pids_limit, usage.pids_failures)


def _physpages(source: Source) -> Held:
    usage = source.usage
    most, limit = _pages(usage.memory_peak), _pages(usage.memory_limit)
    return Held(_pages(usage.memory), most, limit, usage.memory_failures)


def _swappages(source: Source) -> Held:
    usage, counters = source.usage, source.counters
    most, limit = _pages(counters.swap_peak), _pages(usage.swap_limit)
    return Held(_pages(usage.swap), most, limit, counters.swap_failures)


def _kmemsize(source: Source) -> Held:
    found = source.counters
    return Held(found.kernel, found.kernel_peak, None, found.kernel_failures)


def _oomguarpages(source: Source) -> Held:
    anon = source.counters.anon
    swap = source.usage.swap or 0
    return Held(
        None if anon is None else (anon + swap) // PAGE_SIZE, failures=source.usage.oom_kills
    )


def _buffers(source: Source) -> Held:
    found = source.counters
    half = None if found.sockets is None else found.sockets // 2
    return Held(half, failures=found.sockets_failures)


def _tcp(source: Source) -> Held:
    return Held(source.sockets.tcp if source.sockets else None, failures=0)


def _other(source: Source) -> Held:
    return Held(source.sockets.other if source.sockets else None, failures=0)


_READERS: dict[str, Callable[[Source], Held]] = {
    "numproc": _numproc,
    "physpages": _physpages,
    "swappages": _swappages,
    "kmemsize": _kmemsize,
    "lockedpages": lambda s: Held(_pages(s.counters.locked), failures=0),
    "privvmpages": lambda s: Held(_pages(s.counters.anon), failures=0),
    "shmpages": lambda s: Held(_pages(s.counters.shared), failures=0),
    "oomguarpages": _oomguarpages,
    "dcachesize": lambda s: Held(s.counters.slab, failures=0),
    "tcpsndbuf": _buffers,
    "tcprcvbuf": _buffers,
    "numtcpsock": _tcp,
    "numothersock": _other,
    "numfile": lambda s: Held(s.files, failures=0),
}
