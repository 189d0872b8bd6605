"""Devices of a container: which nodes stand in its /dev, which may be opened.

The standard set is the kernel's harmless ones.  Creating any node is allowed (packages unpack
them), opening is not (reference/containers-and-criu.md, section 3, step 1).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue
from pyvz.model.limits import DeviceRule


class DeviceNode(NamedTuple):
    """One node in the container's /dev.  path: inside; kind: "c" or "b"; access: of "rwm"."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    access: str = "rwm"
    source: str = ""  # the node's own file, where it is not the same path

    @property
    def rule(self) -> DeviceRule:
        """What the devices cgroup must allow for it."""
        return DeviceRule(self.kind, self.major, self.minor, self.access)


STANDARD = (
    DeviceNode("/dev/null", "c", 1, 3),
    DeviceNode("/dev/zero", "c", 1, 5),
    DeviceNode("/dev/full", "c", 1, 7),
    DeviceNode("/dev/random", "c", 1, 8),
    DeviceNode("/dev/urandom", "c", 1, 9),
    DeviceNode("/dev/tty", "c", 5, 0),
)
_ALWAYS = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    DeviceRule("c", 5, 1, "rwm"),  # /dev/console
    DeviceRule("c", 5, 2, "rwm"),  # /dev/ptmx
    DeviceRule("c", 136, None, "rwm"),  # /dev/pts/*
)
# What the words of DEVNODES and FEATURES stand for where the node has no such file (module not
# loaded yet): Documentation/admin-guide/devices.txt
_KNOWN = {"net/tun": ("c", 10, 200), "fuse": ("c", 10, 229), "ppp": ("c", 108, 0)}


def from_devnodes(name: str, access: str, *, dev: Path = Path("/dev")) -> DeviceNode:
    """The node that DEVNODES "name:access" stands for (access: r, w or rw); raises BadValue."""
    parts = Path(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise BadValue(f"'{name}' is not the name of a device below /dev")
    if not access or set(access) - set("rwm"):
        raise BadValue(f"'{access}' is not an access to a device (r, w, rw)")
    try:
        found = (dev / name).stat()
    except FileNotFoundError:
        if name not in _KNOWN:
            raise BadValue(f"this node has no device /dev/{name}") from None
        kind, major, minor = _KNOWN[name]
        return DeviceNode(f"/dev/{name}", kind, major, minor, 0o666, access + "m")
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        raise BadValue(f"/dev/{name} is not a device")
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return DeviceNode(f"/dev/{name}", kind, major, minor, found.st_mode & 0o777, access + "m")


def rules(nodes: Iterable[DeviceNode], extra: Iterable[DeviceRule] = ()) -> tuple[DeviceRule, ...]:
    """Every rule for a container with these nodes beside the standard ones: the whole list."""
    wanted = [*_ALWAYS, *(node.rule for node in STANDARD), *(node.rule for node in nodes), *extra]
    return tuple(dict.fromkeys(wanted))
