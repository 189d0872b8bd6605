"""Containers on a node with cgroup v1 controllers ("hybrid"): limits there, the inside on cgroup2.

Every v1 hierarchy has <parent>/<name>; so has the cgroup2 file system, which carries no
controllers then, but is what the container sees, and freezes and kills it (linux/cgroup_tree.py).
Source: Documentation/admin-guide/cgroup-v1/*.rst
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Sequence

from pyvz.errors import BadValue, Busy, NotEnoughResources, SetError, Unsupported
from pyvz.linux import cgroup_limits as plan
from pyvz.linux import cgroup_shrink as shrink
from pyvz.linux import cgroupfs
from pyvz.linux.cgroup_counters import Counters, of_v1
from pyvz.linux.cgroup_entry import CgroupEntry
from pyvz.linux.cgroup_memory import MemoryV1
from pyvz.linux.cgroup_tree import Tree, despite_removals, is_own
from pyvz.linux.mount import MountEntry
from pyvz.model.limits import UNLIMITED, DeviceRule, Limits
from pyvz.model.usage import Usage

_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")
_NOT_CONTROLLERS = frozenset({"rw", "ro", "xattr", "noprefix", "clone_children", "favordynmods"})


def hierarchies(mounts: Iterable[MountEntry], below: str) -> dict[str, str]:
    """Return controller (or "name=systemd") -> mount point of the v1 hierarchies under BELOW."""
    found: dict[str, str] = {}
    for entry in mounts:
        if entry.fstype == "cgroup" and entry.target.startswith(below + "/"):
            for word in entry.super_options:
                if word not in _NOT_CONTROLLERS and not word.startswith("release_agent="):
                    found[word] = entry.target
    return found


class CgroupsV1:
    """See Cgroups in linux/cgroup.py.

    parent: directory relative to every hierarchy.  places: what `hierarchies` returned.
    unified: mount point of the cgroup2 file system.
    """

    version = 1

    def __init__(self, parent: str, places: dict[str, str], unified: str) -> None:
        self.parent = parent
        self.places = places
        self.mounts = list(dict.fromkeys(places.values()))  # cpu and cpuacct may be one
        self.tree = Tree(f"{unified}/{parent}")
        self.parent_path = parent
        self.limits_guard = threading.RLock()  # held by whoever writes a memory limit
        self._memory: MemoryV1 | None = None

    @property
    def memory(self) -> MemoryV1:
        """The memory of the groups; raises Unsupported."""
        if "memory" not in self.places:
            raise Unsupported("the kernel has no memory controller")
        if self._memory is None:
            self._memory = MemoryV1(
                self.places["memory"], self.parent, self.tree.parent, self.limits_guard
            )
        return self._memory

    def create(self, name: str) -> None:
        """Make the container's cgroups anew, with every device denied."""
        if self.tree.populated(name):
            raise cgroupfs.busy(self.tree.path(name))
        despite_removals(lambda: self._create(name))

    def _create(self, name: str) -> None:
        try:
            for mount in self.mounts:
                self._create_in(mount, name)
            if "devices" in self.places:
                cgroupfs.write(self._file("devices", name, "devices.deny"), "a")
            self.tree.create(name)
        except BaseException:
            with contextlib.suppress(OSError, Busy):
                cgroupfs.remove(self._directories(name), timeout=0.0)
            raise

    def _create_in(self, mount: str, name: str) -> None:
        path = f"{mount}/{self.parent}"
        os.makedirs(path, exist_ok=True)
        path += f"/{name}"
        try:
            os.mkdir(path)
        except FileExistsError:
            cgroupfs.remove([path])
            os.mkdir(path)
        if mount == self.places.get("cpuset"):
            self._fill_cpuset(mount, name)

    def _fill_cpuset(self, mount: str, name: str) -> None:
        # A v1 cpuset is born empty and takes no process before both files are filled.
        above, path = mount, mount
        for part in (*self.parent.split("/"), name):
            path += f"/{part}"
            for file in _CPUSET_FILES:
                if not cgroupfs.read(f"{path}/{file}"):
                    cgroupfs.write(f"{path}/{file}", cgroupfs.read(f"{above}/{file}") or "")
            above = path
        cgroupfs.write_if_there(f"{path}/cpuset.memory_migrate", "1")

    def entry(self, name: str) -> CgroupEntry:
        """Return how init gets in."""
        return self._entry(name, self.tree.path(name))

    def session_entry(self, name: str) -> CgroupEntry:
        """Return how an exec session gets in (makes its leaf)."""
        return self._entry(name, self.tree.session_directory(name))

    def _entry(self, name: str, directory: str) -> CgroupEntry:
        procs = [f"{mount}/{self.parent}/{name}/tasks" for mount in self.mounts]
        return CgroupEntry(procs=procs, v2_dir=directory)

    def delegate(self, name: str, uid: int, gid: int) -> None:
        """Give the cgroup2 directory to the container's root; it never sees the v1 ones."""
        self.tree.delegate(name, uid, gid)

    def apply(
        self, name: str, limits: Limits, disks: Sequence[tuple[int, int]] = ()
    ) -> tuple[plan.Unapplied, ...]:
        """Apply LIMITS to a container, running or not; return what the kernel cannot keep."""
        left: list[plan.Unapplied] = []
        writes = [*self._cpu(name, limits, left), *plan.v1_pids(limits), *self._cpusets(limits)]
        writes += self._io(name, limits, disks, left)
        if limits.devices is not None:
            writes += plan.v1_devices(limits.devices, self.devices(name))
        for write in writes:
            self._write(name, write, left)
        self._apply_memory(name, limits, left)
        return tuple(dict.fromkeys(left))

    def _cpu(self, name: str, limits: Limits, left: list[plan.Unapplied]) -> list[plan.Write]:
        writes = plan.v1_cpu(limits)
        if self._text("cpu", name, "cpu.cfs_burst_us") is not None:
            return plan.with_burst(writes, limits, "cpu.cfs_burst_us")
        if limits.cpu_burst:
            left.append(plan.NO_BURST)
        return writes

    def cpus(self, name: str) -> str | None:
        """Return the processors that it is kept on."""
        return self._text("cpuset", name, "cpuset.cpus")

    def _cpusets(self, limits: Limits) -> list[plan.Write]:
        writes = []
        for field, wanted in (("mems", limits.mems), ("cpus", limits.cpus)):
            if wanted is not None and "cpuset" in self.places:
                file = f"cpuset.{field}"
                above = f"{self.places['cpuset']}/{self.parent}/{file}"
                text = wanted or cgroupfs.read(above) or ""
                writes.append(plan.Write(field, "cpuset", file, text))
        return writes

    def _io(
        self,
        name: str,
        limits: Limits,
        disks: Sequence[tuple[int, int]],
        left: list[plan.Unapplied],
    ) -> list[plan.Write]:
        writes = plan.v1_io(limits, disks, self._throttled(name))
        if (limits.io_bps or limits.io_iops) and not disks:
            field = "io_bps" if limits.io_bps else "io_iops"
            left.append(plan.Unapplied(field, "the private area lies on no block device"))
        if limits.io_weight is not None:
            weight = str(plan.IO_WEIGHTS[limits.io_weight])
            for file in ("blkio.weight", "blkio.bfq.weight"):
                if self._text("blkio", name, file) is not None:
                    writes.append(plan.Write("io_weight", "blkio", file, weight))
                    break
            else:
                why = "no I/O scheduler with weights is active (cgroup v1 needs BFQ)"
                left.append(plan.Unapplied("io_weight", why))
        return writes

    def _throttled(self, name: str) -> dict[str, list[str]]:
        files = [
            f"blkio.throttle.{w}_{u}_device" for w in ("read", "write") for u in ("bps", "iops")
        ]
        return {
            file: [
                line.split(" ")[0] for line in (self._text("blkio", name, file) or "").splitlines()
            ]
            for file in files
        }

    def _apply_memory(self, name: str, limits: Limits, left: list[plan.Unapplied]) -> None:
        memory = self._int("memory", name, "memory.limit_in_bytes")
        if memory is None:
            memory = UNLIMITED
        memsw = self._int("memory", name, "memory.memsw.limit_in_bytes")
        if memsw is None and limits.swap is not None:
            why = "the kernel does not account swap (boot it with swapaccount=1)"
            left.append(plan.Unapplied("swap", why))
        done: list[plan.Write] = []
        with self.limits_guard:
            try:
                self._shrink(name, limits.memory, memory, done)
                for write in plan.v1_memory(limits, memory, memsw):
                    former = self._text("memory", name, write.file)
                    self._write(name, write, left)
                    if former is not None:
                        done.append(plan.Write(write.field, "memory", write.file, former))
            except BaseException:
                for undo in reversed(done):
                    self._write(name, undo, left)
                raise

    def _shrink(self, name: str, wanted: int | None, present: int, done: list[plan.Write]) -> None:
        """Make room below a limit that is lower than the present one."""
        if wanted is None or wanted >= present or "memory" not in self.places:
            return
        file = "memory.limit_in_bytes"
        path = self._file("memory", name, file)
        old = "-1" if present >= UNLIMITED else str(present)
        done.append(plan.Write("memory", "memory", file, old))
        shrink.v1(name, os.path.dirname(path), wanted, lambda size: cgroupfs.write(path, str(size)))

    def _write(self, name: str, write: plan.Write, left: list[plan.Unapplied]) -> None:
        if write.controller not in self.places:
            reason = f"the kernel has no {write.controller} controller"
            left.append(plan.Unapplied(write.field, reason))
            return
        try:
            cgroupfs.write(self._file(write.controller, name, write.file), write.text)
        except OSError as error:
            raise refused(name, write, error) from error

    def devices(self, name: str) -> list[DeviceRule]:
        """Return the devices that the container may use."""
        text = self._text("devices", name, "devices.list") or ""
        return [DeviceRule.parse(line) for line in text.splitlines() if not line.startswith("a")]

    def usage(self, name: str) -> Usage:
        """Return what the container uses now; fields are None where nothing counts them."""
        memory, limit, memsw, both = (
            self._int("memory", name, f"memory.{file}_in_bytes")
            for file in ("usage", "limit", "memsw.usage", "memsw.limit")
        )
        pids_events = self._keyed("pids", name, "pids.events")
        read, written = self._io_bytes(name)
        return Usage(
            memory=memory,
            memory_peak=self._int("memory", name, "memory.max_usage_in_bytes"),
            memory_limit=limit,
            memory_failures=self._memory_failures(name),
            swap=None if memsw is None or memory is None else max(memsw - memory, 0),
            swap_limit=_swap_limit(limit, both),
            cpu_ns=self._int("cpuacct", name, "cpuacct.usage"),
            oom_kills=self._keyed("memory", name, "memory.oom_control").get("oom_kill"),
            pids=self._int("pids", name, "pids.current"),
            pids_limit=self._int("pids", name, "pids.max"),
            pids_failures=pids_events.get("max"),
            io_read=read,
            io_written=written,
            pids_peak=self._int("pids", name, "pids.peak"),
        )

    def _memory_failures(self, name: str) -> int | None:
        # With no swap allowed it is the sum of both that is hit and counted (not by Linux 6.18).
        files = ("memory.failcnt", "memory.memsw.failcnt")
        counts = [self._int("memory", name, file) for file in files]
        return None if counts[0] is None else sum(filter(None, counts))

    def _io_bytes(self, name: str) -> tuple[int | None, int | None]:
        file = "blkio.throttle.io_service_bytes_recursive"
        text = self._text("blkio", name, file)
        if text is None:
            return None, None
        sums = {"Read": 0, "Write": 0}
        for line in text.splitlines():
            words = line.split(" ")  # "254:0 Read 4096", last "Total 4096"
            if len(words) == 3 and words[1] in sums:
                sums[words[1]] += int(words[2])
        return sums["Read"], sums["Write"]

    def _int(self, controller: str, name: str, file: str) -> int | None:
        if controller not in self.places:
            return None
        return cgroupfs.read_int(self._file(controller, name, file))

    def _text(self, controller: str, name: str, file: str) -> str | None:
        if controller not in self.places:
            return None
        return cgroupfs.read(self._file(controller, name, file))

    def _keyed(self, controller: str, name: str, file: str) -> dict[str, int]:
        if controller not in self.places:
            return {}
        return cgroupfs.read_keyed(self._file(controller, name, file))

    def counters(self, name: str) -> Counters:
        """Return what else is counted."""
        places = self.places.items()
        return of_v1({kind: f"{mount}/{self.parent}/{name}" for kind, mount in places})

    def _file(self, controller: str, name: str, file: str) -> str:
        place = self.places.get(controller)
        if place is None:
            raise Unsupported(f"the kernel has no {controller} controller")
        return f"{place}/{self.parent}/{name}/{file}"

    def _directories(self, name: str) -> list[str]:
        return [*(f"{m}/{self.parent}/{name}" for m in self.mounts), self.tree.path(name)]

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
        """Take the cgroups away; idempotent; raises Busy."""
        cgroupfs.remove(self._directories(name))
        if is_own(self.parent) and "/" not in self.parent:  # else delegated to us
            self.remove_parent()

    def remove_parent(self) -> None:
        """Take the parent directories away where nothing is in them."""
        for path in (*(f"{mount}/{self.parent}" for mount in self.mounts), self.tree.parent):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def names(self) -> set[str]:
        """Return all containers that have a cgroup in any hierarchy."""
        found = self.tree.names()
        for mount in self.mounts:
            found.update(cgroupfs.children(f"{mount}/{self.parent}"))
        return found


_PLACES = {
    "cpus": ("processors", "/sys/devices/system/cpu/online"),
    "mems": ("NUMA nodes", "/sys/devices/system/node/has_memory"),
}


def refused(name: str, write: plan.Write, error: OSError) -> Exception:
    """Return the error that says why the kernel did not take a limit."""
    if error.errno in (errno.ENOENT, errno.ENODEV) and not os.path.exists(
        os.path.dirname(error.filename or "")
    ):
        return SetError(f"{name} has no cgroup: it does not run")
    if error.errno == errno.EBUSY and write.field in ("memory", "swap"):
        return NotEnoughResources(
            f"{name} uses more memory than {write.text} bytes and cannot give it back",
            hint="Stop processes inside, or choose a higher limit.",
        )
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.EACCES, errno.ENOSPC):
        refusal = f"{write.field}: the kernel does not take '{write.text}'"
        what, path = _PLACES.get(write.field, ("", ""))
        there = (cgroupfs.read(path) or "").strip() if path else ""
        return BadValue(refusal, hint=f"This node has the {what} {there}." if there else "")
    return SetError(f"{write.field} could not be set for {name}: {os.strerror(error.errno or 0)}")


def _swap_limit(memory: int | None, both: int | None) -> int | None:
    if memory is None or both is None:
        return None
    return UNLIMITED if both >= UNLIMITED else max(both - memory, 0)
