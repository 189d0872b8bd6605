"""Memory that is never swapped out: how much of it a QEMU may lock (RLIMIT_MEMLOCK)."""

from __future__ import annotations

import resource
from typing import Final

from pyvz.errors import NotEnoughResources
from pyvz.linux import capability
from pyvz.units import MIB

STACK: Final = 8 * MIB  # of a thread, locked with all else
ROOM: Final = 1024 * MIB  # of QEMU beside the guest's memory, counted in addresses: it has 800 MiB


def limit(memory: int) -> int:
    """Return the limit for a guest that may come to have MEMORY bytes.

    It is RLIM_INFINITY where that can be had: threads and their heaps come and go, and what all of
    it may take of the node is the control group's to say.  Else it is the node's own limit, if that
    is enough; raises NotEnoughResources.
    """
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if hard == resource.RLIM_INFINITY or capability.has(capability.CAP_SYS_RESOURCE):
        return resource.RLIM_INFINITY
    if hard < memory + ROOM:
        raise NotEnoughResources(
            f"{(memory + ROOM) // MIB} MiB of memory are to be locked, and this node allows "
            f"{hard // MIB} MiB (RLIMIT_MEMLOCK of vzd, which has no CAP_SYS_RESOURCE)",
            hint="Start vzd with a higher limit (LimitMEMLOCK=infinity in its unit), or: "
            "prlctl set ID --memory-lock no",
        )
    return hard
