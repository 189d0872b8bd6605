"""How a process gets into a container's cgroups."""

from __future__ import annotations

from typing import TypedDict


class CgroupEntry(TypedDict):
    """Given to the keeper as JSON.

    procs: cgroup.procs files (the v1 hierarchies) to write the process's number into.
    v2_dir: directory for CLONE_INTO_CGROUP, or to write into its cgroup.procs instead; it is
    not repeated in `procs`.
    """

    procs: list[str]
    v2_dir: str | None
