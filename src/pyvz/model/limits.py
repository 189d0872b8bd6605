"""What a container may use of the node: the values that the cgroup layer applies."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyvz.errors import BadValue
from pyvz.units import UNLIMITED

__all__ = ["UNLIMITED", "DeviceRule", "IdRange", "Limits"]

_ACCESS = "rwm"
_RULE = re.compile(r"([bc]) (\d+|\*):(\d+|\*) ([rwm]{1,3})")


class DeviceRule(NamedTuple):
    """One allowed device: what the devices cgroup calls "c 1:3 rwm".

    kind: "c" (character) or "b" (block).  major, minor: None stands for any.
    access: letters of "rwm": read, write, mknod.
    Source: Documentation/admin-guide/cgroup-v1/devices.rst
    """

    kind: str
    major: int | None
    minor: int | None
    access: str

    @classmethod
    def parse(cls, text: str) -> DeviceRule:
        """Return the rule that TEXT ("c 136:* rw") stands for; raise BadValue."""
        match = _RULE.fullmatch(text)
        if match is None:
            raise BadValue(f"'{text}' is not a device rule (like 'c 1:3 rwm')")
        kind, major, minor, access = match.groups()
        return cls(kind, _number(major), _number(minor), canonical_access(access))

    def __str__(self) -> str:
        major = "*" if self.major is None else str(self.major)
        minor = "*" if self.minor is None else str(self.minor)
        return f"{self.kind} {major}:{minor} {self.access}"


class Limits(NamedTuple):
    """Limits of one container.  None: leave it as it is.  UNLIMITED: no limit.

    memory: bytes of RAM.  swap: bytes of swap beside the memory.
    cpu_weight: cpuunits, 8 to 500000, 1000 is the usual share.
    cpu_percent: 100 is one whole CPU; 0 (or UNLIMITED) takes the limit away.
    cpu_burst: percent of a CPU above that limit, of what was left unused before; 0: none.
    cpus, mems: cpuset lists ("0-3,5"); an empty text stands for everything the parent has.
    pids: number of processes and threads.
    io_weight: ioprio, 0 (least) to 7.
    io_bps, io_iops: bytes and operations per second, each way; 0 (or UNLIMITED): no limit.
    devices: every device that may be used, all others are denied.
    """

    memory: int | None = None
    swap: int | None = None
    cpu_weight: int | None = None
    cpu_percent: int | None = None
    cpus: str | None = None
    mems: str | None = None
    pids: int | None = None
    io_weight: int | None = None
    io_bps: int | None = None
    io_iops: int | None = None
    devices: tuple[DeviceRule, ...] | None = None
    cpu_burst: int | None = None


class IdRange(NamedTuple):
    """The user and group ids of the node that a container's 0..count-1 stand for."""

    first: int
    count: int = 65536  # type: ignore[assignment]  # hides tuple.count, which nobody needs

    def __contains__(self, node_id: object) -> bool:
        return isinstance(node_id, int) and self.first <= node_id < self.first + self.count


def canonical_access(access: str) -> str:
    """Return the letters of ACCESS in the order r, w, m, each once."""
    return "".join(letter for letter in _ACCESS if letter in access)


def _number(text: str) -> int | None:
    return None if text == "*" else int(text)
