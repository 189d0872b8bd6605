"""Containers on a node with cgroup v2 only: one tree for the limits and for the inside.

<parent>/<name>/ has the limits (files that stay the node's) and is delegated to the container's
root; it is the root of the container's cgroup namespace.  Controllers are enabled from the mount
down to <parent>; whether the inside enables them further is the container's business.
Source: Documentation/admin-guide/cgroup-v2.rst
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Sequence

from pyvz.errors import Busy, Unsupported
from pyvz.linux import cgroup_limits as plan
from pyvz.linux import cgroup_shrink as shrink
from pyvz.linux import cgroupfs, deviceprogram
from pyvz.linux.cgroup_counters import Counters, of_v2
from pyvz.linux.cgroup_entry import CgroupEntry
from pyvz.linux.cgroup_memory import MemoryV2
from pyvz.linux.cgroup_tree import Tree, despite_removals, is_own
from pyvz.linux.cgroup_v1 import refused
from pyvz.model.limits import Limits
from pyvz.model.usage import Usage

log = logging.getLogger(__name__)

CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
NODE_LEAF = ".node"


class CgroupsV2:
    """See Cgroups in linux/cgroup.py.

    mount: where cgroup2 is mounted.  parent: absolute directory that our containers go into.
    delegated: whether a service manager gave us PARENT; then nothing above it is touched.
    """

    version = 2

    def __init__(self, mount: str, parent: str, *, delegated: bool = False) -> None:
        self.mount = mount
        self.parent = parent
        self.delegated = delegated
        self.tree = Tree(parent)
        self.parent_path = os.path.relpath(parent, mount)
        self.memory = MemoryV2(mount, parent)

    def create(self, name: str) -> None:
        """Make the container's cgroup anew, with every device denied."""
        despite_removals(lambda: self._create(name))

    def _create(self, name: str) -> None:
        os.makedirs(self.parent, exist_ok=True)
        self._enable_controllers()
        path = self.tree.create(name)
        try:
            deviceprogram.attach(path, ())
        except BaseException:
            with contextlib.suppress(OSError, Busy):
                cgroupfs.remove([path], timeout=0.0)
            raise

    def _enable_controllers(self) -> None:
        """Enable what we limit for the children of every cgroup from the mount to PARENT.

        A controller is usable in a cgroup only when all above it pass it down.
        """
        chain = [self.parent]
        while not self.delegated and chain[0] != self.mount:
            chain.insert(0, os.path.dirname(chain[0]))
        if self.delegated:
            # First: with cpu enabled beside a process, the cgroup becomes the root of a threaded
            # tree, and memory and io answer EOPNOTSUPP (cgroups(7), "Thread mode").
            self._evacuate(self.parent, "memory")
        for directory in chain:
            enabled = (cgroupfs.read(f"{directory}/cgroup.subtree_control") or "").split()
            available = (cgroupfs.read(f"{directory}/cgroup.controllers") or "").split()
            for controller in CONTROLLERS:
                if controller in available and controller not in enabled:
                    self._enable(directory, controller)

    def _enable(self, directory: str, controller: str) -> None:
        for _ in range(5):  # somebody may join while we move the others
            try:
                cgroupfs.write(f"{directory}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno == errno.ENOENT and not os.path.isdir(directory):
                    raise
                if error.errno != errno.EBUSY:
                    # For instance cpu, which refuses while real-time processes are below
                    # (CONFIG_RT_GROUP_SCHED).  `apply` reports its limits as not applied.
                    log.warning("%s cannot be enabled in %s: %s", controller, directory, error)
                    return
                self._evacuate(directory, controller)
            else:
                return
        raise Busy(f"processes keep coming into the cgroup {directory}")

    def _evacuate(self, directory: str, controller: str) -> None:
        """Move the processes out of a cgroup that is to have controllers below it.

        In a unit delegated to us they are our own.  Anywhere else they are not ours to move.
        """
        if directory != self.parent or not self.delegated:
            raise Unsupported(
                f"the {controller} controller cannot be enabled in {directory}",
                details="There are processes in it (cgroup v2 allows them in leaves only).",
            )
        leaf = f"{directory}/{NODE_LEAF}"
        os.makedirs(leaf, exist_ok=True)
        for pid in (cgroupfs.read(f"{directory}/cgroup.procs") or "").split():
            with contextlib.suppress(ProcessLookupError):
                cgroupfs.write(f"{leaf}/cgroup.procs", pid)

    def entry(self, name: str) -> CgroupEntry:
        """Return how init gets in."""
        return CgroupEntry(procs=[], v2_dir=self.tree.path(name))

    def session_entry(self, name: str) -> CgroupEntry:
        """Return how an exec session gets in (makes its leaf)."""
        return CgroupEntry(procs=[], v2_dir=self.tree.session_directory(name))

    def delegate(self, name: str, uid: int, gid: int) -> None:
        """Give the directory to the container's root; the limits stay the node's."""
        self.tree.delegate(name, uid, gid)

    def apply(
        self, name: str, limits: Limits, disks: Sequence[tuple[int, int]] = ()
    ) -> tuple[plan.Unapplied, ...]:
        """Apply LIMITS to a container, running or not; return what the kernel cannot keep."""
        high = self._make_room(name, limits.memory)
        try:
            return self._apply(name, limits, disks)
        finally:
            if high is not None:
                cgroupfs.write_if_there(f"{self.tree.path(name)}/memory.high", high)

    def _apply(
        self, name: str, limits: Limits, disks: Sequence[tuple[int, int]]
    ) -> tuple[plan.Unapplied, ...]:
        path = self.tree.path(name)
        left: list[plan.Unapplied] = []
        writes = [
            *_cpusets(self.parent, limits),
            *self._with_burst(path, limits, disks, left),
            *_io_weight(path, limits),
        ]
        writes += self._unthrottle(path, limits, disks)
        for write in writes:
            self._write(name, write, left)
        if (limits.io_bps or limits.io_iops) and not disks:
            field = "io_bps" if limits.io_bps else "io_iops"
            left.append(plan.Unapplied(field, "the private area lies on no block device"))
        if limits.devices is not None:
            deviceprogram.attach(path, limits.devices)
        return tuple(dict.fromkeys(left))

    def _make_room(self, name: str, memory: int | None) -> str | None:
        """Reclaim what is above a new, lower memory limit; return what memory.high was, if changed.

        memory.max below the usage makes the kernel kill processes; v1 refused such a limit
        instead, and so do we.
        """
        return None if memory is None else shrink.v2(name, self.tree.path(name), memory)

    def _unthrottle(
        self, path: str, limits: Limits, disks: Sequence[tuple[int, int]]
    ) -> list[plan.Write]:
        """Return the writes that lift the limits on disks that are not asked for any more."""
        if limits.io_bps is None and limits.io_iops is None:
            return []
        lines = (cgroupfs.read(f"{path}/io.max") or "").splitlines()
        wanted = {f"{major}:{minor}" for major, minor in disks}
        free = " rbps=max wbps=max riops=max wiops=max"
        gone = {line.split(" ")[0] for line in lines} - wanted
        return [plan.Write("io_bps", "io", "io.max", disk + free) for disk in sorted(gone)]

    def _write(self, name: str, write: plan.Write, left: list[plan.Unapplied]) -> None:
        path = f"{self.tree.path(name)}/{write.file}"
        try:
            cgroupfs.write(path, write.text)
        except FileNotFoundError as error:
            if not os.path.isdir(self.tree.path(name)):
                raise refused(name, write, error) from error
            left.append(plan.Unapplied(write.field, _missing(write)))
        except OSError as error:
            raise refused(name, write, error) from error

    def usage(self, name: str) -> Usage:
        """Return what the container uses now; fields are None where nothing counts them."""
        path = self.tree.path(name)
        events = cgroupfs.read_keyed(f"{path}/memory.events")
        micros = cgroupfs.read_keyed(f"{path}/cpu.stat").get("usage_usec")
        read, written = _io_bytes(cgroupfs.read(f"{path}/io.stat"))
        return Usage(
            memory=cgroupfs.read_int(f"{path}/memory.current"),
            memory_peak=cgroupfs.read_int(f"{path}/memory.peak"),
            memory_limit=cgroupfs.read_int(f"{path}/memory.max"),
            memory_failures=events.get("max"),
            swap=cgroupfs.read_int(f"{path}/memory.swap.current"),
            swap_limit=cgroupfs.read_int(f"{path}/memory.swap.max"),
            cpu_ns=None if micros is None else micros * 1000,
            oom_kills=events.get("oom_kill"),
            pids=cgroupfs.read_int(f"{path}/pids.current"),
            pids_limit=cgroupfs.read_int(f"{path}/pids.max"),
            pids_failures=cgroupfs.read_keyed(f"{path}/pids.events").get("max"),
            io_read=read,
            io_written=written,
            pids_peak=cgroupfs.read_int(f"{path}/pids.peak"),
        )

    def _with_burst(
        self,
        path: str,
        limits: Limits,
        disks: Sequence[tuple[int, int]],
        left: list[plan.Unapplied],
    ) -> list[plan.Write]:
        writes = plan.v2_writes(limits, disks)
        if os.path.exists(f"{path}/cpu.max.burst"):
            return plan.with_burst(writes, limits, "cpu.max.burst")
        if limits.cpu_burst:
            left.append(plan.NO_BURST)
        return writes

    def cpus(self, name: str) -> str | None:
        """Return the processors that it is kept on."""
        return cgroupfs.read(f"{self.tree.path(name)}/cpuset.cpus")

    def counters(self, name: str) -> Counters:
        """Return what else is counted."""
        return of_v2(self.tree.path(name))

    def freeze(self, name: str) -> None:
        """Stop every process; raises Timeout."""
        self.tree.freeze(name)

    def thaw(self, name: str) -> None:
        """Let the processes go on."""
        self.tree.thaw(name)

    def frozen(self, name: str) -> bool:
        """Whether the container is frozen."""
        return self.tree.frozen(name)

    def events_file(self, name: str) -> str:
        """Return what tells of its freezing and its end."""
        return self.tree.events_file(name)

    def kill(self, name: str) -> None:
        """Kill every process."""
        self.tree.kill(name)

    def pids(self, name: str) -> list[int]:
        """Return the processes."""
        return self.tree.pids(name)

    def wait_empty(self, name: str, timeout: float) -> bool:
        """Wait until the last process has ended."""
        return self.tree.wait_empty(name, timeout)

    def remove(self, name: str) -> None:
        """Take the cgroup away; idempotent; raises Busy."""
        cgroupfs.remove([self.tree.path(name)])
        if is_own(self.parent):
            self.remove_parent()

    def remove_parent(self) -> None:
        """Take the parent directory away when it was not given to us and nothing is in it."""
        if not self.delegated:
            with contextlib.suppress(OSError):
                os.rmdir(self.parent)

    def names(self) -> set[str]:
        """Return all containers that have a cgroup."""
        return self.tree.names()


def _cpusets(parent: str, limits: Limits) -> list[plan.Write]:
    # An empty text stands for everything of the parent.  The kernel takes it as long as nobody is
    # in the cgroup and refuses it afterwards, so everything is written out.
    return [
        plan.Write(field, "cpuset", f"cpuset.{field}", text or _effective(parent, field))
        for field, text in (("mems", limits.mems), ("cpus", limits.cpus))
        if text is not None
    ]


def _effective(parent: str, field: str) -> str:
    return (cgroupfs.read(f"{parent}/cpuset.{field}.effective") or "").strip() or "\n"


def _io_weight(path: str, limits: Limits) -> list[plan.Write]:
    if limits.io_weight is None:
        return []
    weight = plan.IO_WEIGHTS[limits.io_weight]
    # io.weight is kept by the iocost controller, io.bfq.weight by the BFQ scheduler; which of
    # them works is a matter of each disk, so both are told.
    files = [f for f in ("io.weight", "io.bfq.weight") if os.path.exists(f"{path}/{f}")]
    return [
        plan.Write("io_weight", "io", file, f"default {weight}") for file in files or ["io.weight"]
    ]


def _missing(write: plan.Write) -> str:
    if write.field == "swap":
        return "the kernel does not account swap (swapaccount=0 or no CONFIG_SWAP)"
    if write.field == "io_weight":
        return "the kernel has neither the iocost controller nor the BFQ scheduler"
    return f"the {write.controller} controller is not available here"


def _io_bytes(text: str | None) -> tuple[int | None, int | None]:
    """Return the sums of io.stat: "8:0 rbytes=1 wbytes=2 rios=3 ..." lines."""
    if text is None:
        return None, None
    read = written = 0
    for word in text.split():
        key, _, value = word.partition("=")
        if key == "rbytes":
            read += int(value)
        elif key == "wbytes":
            written += int(value)
    return read, written
