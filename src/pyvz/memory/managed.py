"""What the memory manager does with one VE: a container, a service, or a virtual machine.

A container is a control group (`Group`).  A machine is one too, since QEMU runs in a group like a
container; what it has beside that, its balloon, belongs into a class of its own with the same
methods: `sample` adds what the guest tells, `protect` moves the balloon instead of `high`, and
`take` inflates it.  `operations/memory.py: managed` chooses.
"""

from __future__ import annotations

from typing import Protocol

from pyvz.linux.cgroup_memory import Memory
from pyvz.model.memory import Protection, Sample


class Managed(Protocol):
    """One VE.  All methods are quick and may be called from any thread; OSError when it ended."""

    def sample(self) -> Sample | None:
        """Return what it uses now; None when it is not there (any more)."""

    def protect(self, guarantee: int, wanted: Protection) -> None:
        """Put guarantee, low and high in force.  Never touches its limit."""

    def take(self, amount: int) -> int:
        """Make it give AMOUNT bytes back without harm; return how much it gave."""


class Group:
    """A control group."""

    __slots__ = ("_memory", "path")

    def __init__(self, memory: Memory, path: str) -> None:
        self._memory = memory
        self.path = path

    def sample(self) -> Sample | None:
        """Return what the group uses."""
        return self._memory.sample(self.path)

    def protect(self, guarantee: int, wanted: Protection) -> None:
        """Put it in force by the files of the group."""
        self._memory.protect(self.path, guarantee, wanted)

    def take(self, amount: int) -> int:
        """Reclaim."""
        return self._memory.reclaim(self.path, amount)
