"""What a container uses of the node at one moment."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """Counters of one container; None: this kernel or controller does not count it.

    memory, memory_peak, memory_limit: bytes (with page cache); limit is UNLIMITED for none.
    memory_failures: how often the limit was hit.  swap, swap_limit: bytes of swap.
    cpu_ns: CPU time used, in nanoseconds.  oom_kills: processes killed for want of memory.
    pids, pids_limit, pids_failures: processes and threads, their limit, refused forks.
    pids_peak: most of them at once (Linux 6.12).
    io_read, io_written: bytes moved from and to disks.
    """

    memory: int | None = None
    memory_peak: int | None = None
    memory_limit: int | None = None
    memory_failures: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    cpu_ns: int | None = None
    oom_kills: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    pids_failures: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    pids_peak: int | None = None
