"""The cgroups of our containers, behind one interface for cgroup v1 and v2.

`detect` looks at the node and returns the right one.  A container's cgroup is named by its UUID
and lies below one parent, so that two nodes on one machine never meet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pyvz.errors import Unsupported
from pyvz.linux.cgroup_counters import Counters
from pyvz.linux.cgroup_entry import CgroupEntry
from pyvz.linux.cgroup_limits import Unapplied
from pyvz.linux.cgroup_memory import Memory
from pyvz.linux.cgroup_v1 import CgroupsV1, hierarchies
from pyvz.linux.cgroup_v2 import CgroupsV2
from pyvz.linux.mount import mounts
from pyvz.model.limits import Limits
from pyvz.model.usage import Usage

__all__ = ["CgroupEntry", "Cgroups", "Unapplied", "Usage", "delegated_unit", "detect"]

MOUNT = "/sys/fs/cgroup"


class Cgroups(Protocol):
    """The cgroups of all containers of one node.  `name` is always a container's UUID."""

    version: int
    parent_path: str  # of the directory that all of ours are in, below any hierarchy's mount

    @property
    def memory(self) -> Memory:
        """The memory of the groups, for the memory manager; raises Unsupported."""

    def create(self, name: str) -> None:
        """Make a container's cgroups anew, all devices denied.

        A dead leftover is removed first.  Raises Busy when processes are in it, Unsupported.
        """

    def entry(self, name: str) -> CgroupEntry:
        """Return how init gets in."""

    def session_entry(self, name: str) -> CgroupEntry:
        """Return how an exec or enter session gets in; to be asked anew for each session."""

    def delegate(self, name: str, uid: int, gid: int) -> None:
        """Let the inside manage its own cgroup2 subtree as UID and GID (of the node)."""

    def apply(
        self, name: str, limits: Limits, disks: Sequence[tuple[int, int]] = ()
    ) -> tuple[Unapplied, ...]:
        """Apply limits, live too; return those that this kernel cannot keep, with the reason.

        disks: (major, minor) of the whole disks for io_bps and io_iops; see blockdevice.disks_of.
        Raises BadValue, NotEnoughResources (memory in use), SetError.
        """

    def usage(self, name: str) -> Usage:
        """Return what it uses now; all None when it has no cgroup."""

    def cpus(self, name: str) -> str | None:
        """Return the list of processors that it is kept on; None where nothing keeps it."""

    def counters(self, name: str) -> Counters:
        """Return what else is counted for it; all None when it has no cgroup."""

    def freeze(self, name: str) -> None:
        """Stop every process; raises Timeout, then nothing is frozen."""

    def thaw(self, name: str) -> None:
        """Let the processes go on."""

    def frozen(self, name: str) -> bool:
        """Whether it is frozen."""

    def events_file(self, name: str) -> str:
        """Return a file that inotify(7) tells of when it freezes, thaws, or its last one ends."""

    def kill(self, name: str) -> None:
        """Send SIGKILL to every process; also to frozen ones.  Does not wait."""

    def pids(self, name: str) -> list[int]:
        """Return all processes, as the node counts them."""

    def wait_empty(self, name: str, timeout: float) -> bool:
        """Wait until the last process has ended; return whether it has."""

    def remove(self, name: str) -> None:
        """Take the cgroups away; idempotent; raises Busy when processes stay in them."""

    def remove_parent(self) -> None:
        """Take the parent away when it is empty; else leave it."""

    def names(self) -> set[str]:
        """Return every container that has a cgroup."""


def detect(
    parent_name: str, mount: str | Path = MOUNT, *, delegated: str | Path | None = None
) -> Cgroups:
    """Return the cgroups below PARENT_NAME ("machine.slice") of this node.

    delegated: a cgroup2 directory that the service manager has given to us (see `delegated_unit`);
    then this is the parent.  Raises Unsupported, saying what is missing.
    """
    top = os.fspath(mount).rstrip("/")
    table = mounts(top)
    unified = next((entry.target for entry in table if entry.fstype == "cgroup2"), None)
    if unified is None:
        raise Unsupported(
            f"no cgroup2 file system is mounted at or below {top}",
            hint=f"Mount one: mkdir {top}/unified; mount -t cgroup2 cgroup2 {top}/unified",
        )
    parent = f"{unified}/{parent_name}" if delegated is None else os.fspath(delegated)
    v1 = hierarchies(table, top)
    if any("name=" not in controller for controller in v1):
        return CgroupsV1(os.path.relpath(parent, unified), v1, unified)
    return CgroupsV2(unified, parent, delegated=delegated is not None)


def delegated_unit(unit: str, mount: str | Path = MOUNT) -> Path | None:
    """Return the cgroup2 directory of `unit` ("machine.slice/x.service") when systemd gave it away.

    systemd marks it with the extended attribute trusted.delegate (Delegate= in
    systemd.resource-control(5)).  None where there is no such unit, or no systemd.
    """
    unified = next((entry.target for entry in mounts(mount) if entry.fstype == "cgroup2"), None)
    if unified is None:
        return None
    path = Path(unified) / unit
    with contextlib.suppress(OSError):
        if os.getxattr(path, "trusted.delegate") == b"1":
            return path
    return None
