"""Memory of environments as the memory manager sees it: what is promised, used and protected.

Sizes are bytes; UNLIMITED stands for no limit.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pyvz.units import UNLIMITED


class VeType(StrEnum):
    """What a registered VE is; the values are the words of vcmmdctl."""

    CT = "CT"
    VM = "VM"
    VM_LIN = "VM_LIN"
    VM_WIN = "VM_WIN"
    SRVC = "SRVC"

    @property
    def machine(self) -> bool:
        """Whether it is a virtual machine."""
        return self in {VeType.VM, VeType.VM_LIN, VeType.VM_WIN}


class Reservation(NamedTuple):
    """One registered VE: what it may have and what it is promised.

    name: the UUID of an environment; of a service the path of its control group.
    active: it runs and is managed; before that its guarantee is only set aside.
    guarantee: never taken from it.  auto: the policy decides the guarantee.
    limit: RAM at most.  swap: swap beside it.  cache: page cache at most (kept, not enforced).
    overhead: what the node itself needs for it (video memory and QEMU of a machine).
    """

    name: str
    type: VeType
    active: bool = False
    guarantee: int = 0
    auto: bool = True
    limit: int = UNLIMITED
    swap: int = UNLIMITED
    cache: int = UNLIMITED
    cpunum: int = 0
    overhead: int = 0

    @property
    def minimum(self) -> int:
        """What the node must keep for it."""
        return self.guarantee + self.overhead


class Sample(NamedTuple):
    """What the kernel shows of one VE at one moment.

    used: all memory charged to it.  swap: what of it is swapped out.
    anon: memory without a file, shared memory too; it can only go to swap.
    active: page cache that was used twice or more.  cache: all page cache.
    refaults: bytes of page cache (and swap) that came back since the VE began, having been taken
    away before; activated: those of them that the kernel counts as part of the working set, None
    where it does not tell (cgroup v1).
    fresh: how often page cache was brought in since it began; a count of the kernel's own (pages,
    or blocks of pages), of which only the change means something.
    major: major faults since it began.  stalled: microseconds in which some task of it waited for
    memory (PSI), None where the kernel does not tell.  oom: processes killed for want of memory.
    """

    used: int
    swap: int = 0
    anon: int = 0
    active: int = 0
    cache: int = 0
    refaults: int = 0
    activated: int | None = None
    fresh: int = 0
    major: int = 0
    stalled: int | None = None
    oom: int = 0


class Protection(NamedTuple):
    """What a policy wants for one VE.  It never touches the limit, which is the owner's.

    low: memory that is taken from it only when there is nothing else (never below the guarantee).
    high: above this it is made to give back, without ever being killed for it; UNLIMITED: not.
    cpus, mems: processors and NUMA nodes to keep it on, None: as its owner has set it.
    """

    low: int = 0
    high: int = UNLIMITED
    cpus: str | None = None
    mems: str | None = None


class NodeMemory(NamedTuple):
    """The memory of the node.

    total: what VEs and all else share.  usable: what VEs may be promised together.
    free: unused at the moment, page cache not counted.  swap, swap_total: of the whole machine.
    """

    total: int
    usable: int
    free: int
    swap: int = 0
    swap_total: int = 0
