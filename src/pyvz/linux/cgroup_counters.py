"""What a container's cgroups count beside its use (model/usage.py): for beancounters and metrics.

A field is None where this kernel or kind of cgroup does not count it; v1 counts no slab apart.
Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pyvz.linux import cgroupfs


class Counters(NamedTuple):
    """Bytes, and numbers of refusals.

    kernel: memory of the kernel for it (stacks, page tables, slab, sockets).  slab: reclaimable
    slab, mostly names and inodes.  anon: memory without a file.  file: page cache.
    shared: shared memory and tmpfs.
    locked: memory that cannot be taken.  sockets: buffers of sockets.
    major: major faults.  throttled: nanoseconds in which the CPU limit made it wait.
    """

    kernel: int | None = None
    kernel_peak: int | None = None
    kernel_failures: int | None = None
    slab: int | None = None
    anon: int | None = None
    file: int | None = None
    shared: int | None = None
    locked: int | None = None
    sockets: int | None = None
    sockets_failures: int | None = None
    swap_peak: int | None = None
    swap_failures: int | None = None
    major: int | None = None
    throttled: int | None = None


def of_v2(path: str) -> Counters:
    """Return the counters of a cgroup2 directory."""
    stat = cgroupfs.read_keyed(f"{path}/memory.stat").get
    throttled = cgroupfs.read_keyed(f"{path}/cpu.stat").get("throttled_usec")
    return Counters(
        kernel=stat("kernel"),
        slab=stat("slab_reclaimable"),
        anon=stat("anon"),
        file=stat("file"),
        shared=stat("shmem"),
        locked=stat("unevictable"),
        sockets=stat("sock"),
        swap_peak=cgroupfs.read_int(f"{path}/memory.swap.peak"),
        swap_failures=cgroupfs.read_keyed(f"{path}/memory.swap.events").get("fail"),
        major=stat("pgmajfault"),
        throttled=None if throttled is None else throttled * 1000,
    )


def of_v1(places: Mapping[str, str]) -> Counters:
    """Return the counters of one cgroup in each v1 hierarchy: controller -> its directory."""
    memory = places.get("memory", "")
    # The lines without "total_" leave out what the cgroups below use.
    stat = cgroupfs.read_keyed(f"{memory}/memory.stat").get
    sockets = f"{memory}/memory.kmem.tcp"
    kernel = f"{memory}/memory.kmem"
    return Counters(
        kernel=cgroupfs.read_int(f"{kernel}.usage_in_bytes"),
        kernel_peak=cgroupfs.read_int(f"{kernel}.max_usage_in_bytes"),
        kernel_failures=cgroupfs.read_int(f"{kernel}.failcnt"),
        anon=stat("total_rss"),
        file=stat("total_cache"),
        shared=stat("total_shmem"),
        locked=stat("total_unevictable"),
        sockets=cgroupfs.read_int(f"{sockets}.usage_in_bytes"),
        sockets_failures=cgroupfs.read_int(f"{sockets}.failcnt"),
        swap_failures=cgroupfs.read_int(f"{memory}/memory.memsw.failcnt"),
        major=stat("total_pgmajfault"),
        throttled=cgroupfs.read_keyed(f"{places.get('cpu', '')}/cpu.stat").get("throttled_time"),
    )
