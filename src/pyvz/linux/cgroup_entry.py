"""How a process gets into a container's cgroups.

A v1 group is joined by its file `tasks`: a process with one thread that writes "0" there moves as
by `cgroup.procs`, but without the lock of all processes' threads (cgroup_threadgroup_rwsem), which
takes an RCU grace period, 10 to 15 ms, after every pause (cgroup_procs_write_start in the kernel).
"""

from __future__ import annotations

from typing import TypedDict


class CgroupEntry(TypedDict):
    """Given to the keeper as JSON.

    procs: files of the v1 hierarchies into which the process, having one thread, writes "0".
    v2_dir: directory for CLONE_INTO_CGROUP, or to write into its cgroup.procs instead; it is
    not repeated in `procs`.
    """

    procs: list[str]
    v2_dir: str | None
