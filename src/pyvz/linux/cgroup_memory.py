"""The memory of control groups: what they use, what protects them, how they are made to give back.

One interface for both kinds (`Memory`).  Every method takes the absolute directory of a group in
the hierarchy that has the memory controller.

                     v2                      v1
    guarantee        memory.min              memory.soft_limit_in_bytes: when the whole node is
    low              memory.low              short, the kernel first takes from those above it
    high             memory.high             kept by us: linux/memory_ceiling.py
    give back        memory.reclaim          `pulse`: the limit is lowered for a moment

Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst; mm/memcontrol-v1.c
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from typing import NamedTuple, Protocol

from pyvz.linux import cgroup_shrink as shrink
from pyvz.linux import cgroupfs
from pyvz.linux.cgroup_limits import v1_memory
from pyvz.linux.kept_files import KeptFiles
from pyvz.linux.memory_ceiling import Ceilings
from pyvz.model.limits import Limits
from pyvz.model.memory import NodeMemory, Protection, Sample
from pyvz.units import MIB, PAGE_SIZE, UNLIMITED

STEP = 32 * MIB  # given back by one system call, which cannot be interrupted otherwise
_MARGIN = 4 * MIB  # what a pulse leaves to the group beside what cannot be taken


class Promise(NamedTuple):
    """What the parent of all groups must be protected with, so that its children can be.

    low: None leaves it as it is, but not below `least`.
    """

    least: int
    low: int | None = None


class Memory(Protocol):
    """See the module."""

    def path(self, name: str) -> str:
        """Return the directory of a container."""

    def service(self, name: str) -> str:
        """Return the directory of a service, named by its path ("system.slice/x.service")."""

    def sample(self, path: str) -> Sample | None:
        """Return what the group uses now; None when it is not there."""

    def protect(self, path: str, guarantee: int, wanted: Protection) -> None:
        """Put a guarantee and a policy's protection in force; OSError."""

    def promise(self, promise: Promise) -> None:
        """Protect the groups above ours by what their members are promised together."""

    def reclaim(self, path: str, amount: int) -> int:
        """Make the group give AMOUNT bytes back; return how much it was.  Never kills anybody."""

    def present_limits(self, path: str) -> tuple[int | None, int | None]:
        """Return memory and swap limit as the kernel has them."""

    def set_limits(self, path: str, memory: int, swap: int) -> None:
        """Set both limits; raises NotEnoughResources, OSError: then the old ones are in force."""

    def node(self) -> tuple[int, int]:
        """Return limit (UNLIMITED) and use of the group that ours are in."""

    def settle(self) -> None:
        """Give up the files of groups that were not looked at since the last time."""

    def close(self) -> None:
        """Give up everything that is held."""


def node_memory(memory: Memory, reserved: int) -> NodeMemory:
    """Return the memory of the node; a limit on our parent group makes the node smaller.

    reserved: what the node keeps for itself.
    """
    facts = _meminfo()
    limit, used = memory.node()
    total, free = facts["MemTotal"], facts["MemFree"]
    usable = max(total - reserved, 0)
    if limit < total:
        return NodeMemory(
            total=limit,
            usable=min(usable, limit),
            free=min(free, max(limit - used, 0)),
            swap=facts["SwapTotal"] - facts["SwapFree"],
            swap_total=facts["SwapTotal"],
        )
    swap = facts["SwapTotal"]
    return NodeMemory(total, usable, free, swap - facts["SwapFree"], swap)


def _meminfo() -> dict[str, int]:
    found = dict.fromkeys(("MemTotal", "MemFree", "SwapTotal", "SwapFree"), 0)
    for line in (cgroupfs.read("/proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        if key in found:
            found[key] = int(rest.split()[0]) * 1024
    return found


class MemoryV2:
    """Control group v2: the kernel does it all.

    mount: of the file system.  parent: absolute directory of our groups.
    """

    def __init__(self, mount: str, parent: str) -> None:
        self.mount = mount
        self.parent = parent
        self._written: dict[str, tuple[int, int]] = {}
        self._files = KeptFiles()

    def path(self, name: str) -> str:
        """Return the directory of a container."""
        return f"{self.parent}/{cgroupfs.check_name(name)}"

    def service(self, name: str) -> str:
        """Return the directory of a service."""
        return f"{self.mount}/{name}"

    def sample(self, path: str) -> Sample | None:
        """Return what the group uses now."""
        used = self._files.read(f"{path}/memory.current")
        if not used:
            return None
        stat = _numbers(self._files.read(f"{path}/memory.stat") or "")
        got = stat.get
        active = got("active_file", 0)
        back = got("workingset_refault_file", 0) + got("workingset_refault_anon", 0)
        known = got("workingset_activate_file", 0) + got("workingset_activate_anon", 0)
        return Sample(
            used=int(used),
            swap=int(self._files.read(f"{path}/memory.swap.current") or 0),
            anon=got("anon", 0) + got("shmem", 0),
            active=active,
            cache=active + got("inactive_file", 0),
            refaults=back * PAGE_SIZE,
            activated=known * PAGE_SIZE,
            fresh=got("pgsteal", 0) + got("file", 0) // PAGE_SIZE,
            major=got("pgmajfault", 0),
            stalled=stalled(self._files.read(f"{path}/memory.pressure")),
        )

    def protect(self, path: str, guarantee: int, wanted: Protection) -> None:
        """Put a guarantee and a policy's protection in force."""
        low = max(guarantee, wanted.low)
        for file, value in (
            ("memory.min", guarantee),
            ("memory.low", low),
            ("memory.high", wanted.high),
        ):
            _write_changed(f"{path}/{file}", value)

    def promise(self, promise: Promise) -> None:
        """A group is protected only as far as all above it are (cgroup-v2.rst, memory.min).

        What somebody has set higher than we need stays.  A service manager that writes its own
        value back finds ours again after the next round.
        """
        above = self.parent
        while above not in {self.mount, "/", ""}:
            last_min, last_low = self._written.get(above, (0, 0))
            low = max(promise.least, last_low if promise.low is None else promise.low)
            for file, value, last in (
                ("memory.min", promise.least, last_min),
                ("memory.low", low, last_low),
            ):
                now = cgroupfs.read_int(f"{above}/{file}")
                if now is not None and now != value and (now == last or now < value):
                    with suppress(FileNotFoundError):
                        cgroupfs.write(f"{above}/{file}", _number(value))
            self._written[above] = (promise.least, low)
            above = os.path.dirname(above)

    def reclaim(self, path: str, amount: int) -> int:
        """Make the group give AMOUNT bytes back."""
        before = cgroupfs.read_int(f"{path}/memory.current") or 0
        left = amount
        while left > 0:
            try:
                cgroupfs.write(f"{path}/memory.reclaim", str(min(left, STEP)))
            except OSError as error:  # EAGAIN: not all of it.  ENOENT: Linux before 5.19
                if error.errno not in (errno.EAGAIN, errno.ENOENT):
                    raise
                break
            left -= STEP
        return max(before - (cgroupfs.read_int(f"{path}/memory.current") or 0), 0)

    def present_limits(self, path: str) -> tuple[int | None, int | None]:
        """Return memory and swap limit as the kernel has them."""
        memory = cgroupfs.read_int(f"{path}/memory.max")
        return memory, cgroupfs.read_int(f"{path}/memory.swap.max")

    def set_limits(self, path: str, memory: int, swap: int) -> None:
        """Set both limits, reclaiming what is above first."""
        high = shrink.v2(os.path.basename(path), path, memory)
        try:
            cgroupfs.write_if_there(f"{path}/memory.swap.max", _number(swap))
            cgroupfs.write(f"{path}/memory.max", _number(memory))
        finally:
            if high is not None:
                cgroupfs.write_if_there(f"{path}/memory.high", high)

    def node(self) -> tuple[int, int]:
        """Return limit and use of our parent."""
        limit = cgroupfs.read_int(f"{self.parent}/memory.max")
        used = cgroupfs.read_int(f"{self.parent}/memory.current")
        return (UNLIMITED if limit is None else limit), used or 0

    def settle(self) -> None:
        """Give up the files of groups that were not looked at since the last time."""
        self._files.sweep()

    def close(self) -> None:
        """Close the files that are kept open."""
        self._files.close()


class MemoryV1:
    """Control group v1: what the kernel lacks is done here.

    mount: of the memory controller.  parent: of our groups, relative to the mount.
    unified: the directory of our groups in the cgroup2 tree, which has the pressure files.
    guard: held while a limit is written; whoever else writes limits holds it too.
    """

    def __init__(self, mount: str, parent: str, unified: str, guard: threading.RLock) -> None:
        self.mount = mount
        self.parent = f"{mount}/{parent}"
        self.unified = unified
        self._guard = guard
        self._unit = refault_unit()
        self._pressure = os.path.exists("/proc/pressure/memory")
        self._ceilings: Ceilings | None = None
        self._files = KeptFiles()

    def path(self, name: str) -> str:
        """Return the directory of a container."""
        return f"{self.parent}/{cgroupfs.check_name(name)}"

    def service(self, name: str) -> str:
        """Return the directory of a service."""
        return f"{self.mount}/{name}"

    def sample(self, path: str) -> Sample | None:
        """Return what the group uses now."""
        used = self._files.read(f"{path}/memory.usage_in_bytes")
        if not used:
            return None
        text = self._files.read(f"{path}/memory.stat") or ""
        got = _numbers(text[text.find("total_cache ") :]).get
        active = got("total_active_file", 0)
        back = got("total_workingset_refault_file", 0) + got("total_workingset_refault_anon", 0)
        stall = None
        if self._pressure and path.startswith(self.parent):
            name = path.removeprefix(self.parent)
            stall = stalled(self._files.read(f"{self.unified}{name}/memory.pressure"))
        return Sample(
            used=int(used),
            swap=got("total_swap", 0),
            anon=got("total_rss", 0) + got("total_shmem", 0),
            active=active,
            cache=active + got("total_inactive_file", 0),
            refaults=back * self._unit,
            # Memory without a file is brought in by a fault for each page.
            fresh=got("total_pgpgin", 0) - got("total_pgfault", 0),
            major=got("total_pgmajfault", 0),
            stalled=stall,
        )

    def protect(self, path: str, guarantee: int, wanted: Protection) -> None:
        """Put a guarantee and a policy's protection in force.

        Every group gets a soft limit, those without any protection 0: one without a soft limit
        would never be taken from before the others.
        """
        with suppress(FileNotFoundError):  # a kernel without soft limits (PREEMPT_RT)
            _write_changed(f"{path}/memory.soft_limit_in_bytes", max(guarantee, wanted.low))
        if wanted.high < UNLIMITED or self._ceilings is not None:
            if self._ceilings is None:
                self._ceilings = Ceilings(self._give_back)
            self._ceilings.set(path, wanted.high)

    def _give_back(self, path: str, amount: int) -> int:
        return self.reclaim(path, amount)

    def promise(self, promise: Promise) -> None:
        """Soft limits of v1 count for each group alone."""

    def reclaim(self, path: str, amount: int) -> int:
        """Make the group give AMOUNT bytes back, by lowering its limit for a moment.

        The kernel reclaims until the use is below the new limit, then sets it, and we put the old
        one back.  So that nobody is killed in between, never less is asked for than can be taken
        without waiting: page cache that is neither dirty nor under write.
        """
        freed = 0
        while freed < amount:
            got = self._pulse(path, min(amount - freed, STEP))
            if got <= 0:
                break
            freed += got
        return freed

    def _pulse(self, path: str, amount: int) -> int:
        file = f"{path}/memory.limit_in_bytes"
        with self._guard:
            limit = cgroupfs.read_int(file)
            before = cgroupfs.read_int(f"{path}/memory.usage_in_bytes")
            if limit is None or before is None:
                return 0
            amount = min(amount, self._takeable(path))
            target = before - amount
            if amount <= 0 or target >= limit:
                return 0
            try:
                cgroupfs.write(file, str(target))
            except OSError as error:  # EBUSY: it could not give all of it
                if error.errno not in (errno.EBUSY, errno.EINVAL, errno.EINTR):
                    raise
                after = cgroupfs.read_int(f"{path}/memory.usage_in_bytes")
                amount = before - (before if after is None else after)
            finally:
                with suppress(FileNotFoundError):
                    cgroupfs.write(file, _v1_number(limit))
        return amount

    def _takeable(self, path: str) -> int:
        text = cgroupfs.read(f"{path}/memory.stat") or ""
        got = _numbers(text[text.find("total_cache ") :]).get
        cache = got("total_active_file", 0) + got("total_inactive_file", 0)
        return cache - got("total_dirty", 0) - got("total_writeback", 0) - _MARGIN

    def present_limits(self, path: str) -> tuple[int | None, int | None]:
        """Return memory and swap limit as the kernel has them."""
        memory = cgroupfs.read_int(f"{path}/memory.limit_in_bytes")
        both = cgroupfs.read_int(f"{path}/memory.memsw.limit_in_bytes")
        if memory is None or both is None:
            return memory, None
        return memory, UNLIMITED if both >= UNLIMITED else max(both - memory, 0)

    def set_limits(self, path: str, memory: int, swap: int) -> None:
        """Set both limits, reclaiming what is above first."""
        file, both = f"{path}/memory.limit_in_bytes", f"{path}/memory.memsw.limit_in_bytes"
        with self._guard:
            old, old_both = cgroupfs.read_int(file), cgroupfs.read_int(both)
            if old is None:
                raise FileNotFoundError(errno.ENOENT, "no such control group", file)
            done: list[tuple[str, int]] = []
            try:
                if memory < old:
                    done.append((file, old))
                    shrink.v1(
                        os.path.basename(path),
                        path,
                        memory,
                        lambda size: cgroupfs.write(file, str(size)),
                    )
                wanted = Limits(memory=memory, swap=swap)
                for write in v1_memory(wanted, old, old_both):
                    place = f"{path}/{write.file}"
                    done.append((place, cgroupfs.read_int(place) or 0))
                    cgroupfs.write(place, write.text)
            except BaseException:
                for place, value in reversed(done):
                    with suppress(OSError):
                        cgroupfs.write(place, _v1_number(value))
                raise

    def node(self) -> tuple[int, int]:
        """Return limit and use of our parent."""
        limit = cgroupfs.read_int(f"{self.parent}/memory.limit_in_bytes")
        used = cgroupfs.read_int(f"{self.parent}/memory.usage_in_bytes")
        return (UNLIMITED if limit is None else limit), used or 0

    def settle(self) -> None:
        """Give up the files of groups that were not looked at since the last time."""
        self._files.sweep()

    def close(self) -> None:
        """Close the files that are kept open, and end the thread that keeps the ceilings."""
        self._files.close()
        if self._ceilings is not None:
            self._ceilings.close()
            self._ceilings = None


def refault_unit(release: str | None = None) -> int:
    """Return the bytes that 1 in v1's workingset_refault stands for.

    Until Linux 6.8 memcg1_stat_format() multiplied every line by the page size.
    """
    words = (release or os.uname().release).replace("-", ".").split(".")
    version = tuple(int(word) if word.isdigit() else 0 for word in words[:2])
    return PAGE_SIZE if version >= (6, 8) else 1


def stalled(text: str | None) -> int | None:
    """Return the microseconds of a pressure file's line "some"; None where there is none."""
    if not text or not text.startswith("some "):
        return None
    total = text.partition("\n")[0].rpartition("total=")[2]
    return int(total) if total.isdigit() else None


def _numbers(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=False))


def _write_changed(path: str, value: int) -> None:
    """Write a number that is not there already (numbers come back rounded to pages)."""
    now = cgroupfs.read_int(path)
    if now is None:
        return
    wanted = value if value >= UNLIMITED else value // PAGE_SIZE * PAGE_SIZE
    if now != wanted:
        cgroupfs.write(path, _v1_number(value) if path.endswith("_in_bytes") else _number(value))


def _number(value: int) -> str:
    return "max" if value >= UNLIMITED else str(value)


def _v1_number(value: int) -> str:
    return "-1" if value >= UNLIMITED else str(value)
