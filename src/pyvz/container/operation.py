"""The steps that turn a mounted tree into a running container, as plain data.

plan.py makes them (pure), the protocol carries them as JSON, stage.py executes them inside the
container's namespaces, after pivot_root: every path is one inside the container, so no link in a
hostile tree can lead to the node.  `NodeBind.source` alone is a path on the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Mount(NamedTuple):
    """Mount a new file system; flags are MS_*.  optional: skip it where the target is missing."""

    target: str
    fstype: str
    flags: int = 0
    data: str = ""
    optional: bool = False

    def describe(self) -> str:
        return f"mounting {self.fstype} on {self.target}"


class Directory(NamedTuple):
    """Make a directory unless there is one."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        return f"making the directory {self.path}"


class EmptyFile(NamedTuple):
    """Make an empty file unless there is one."""

    path: str
    mode: int = 0o444

    def describe(self) -> str:
        return f"making the file {self.path}"


class Symlink(NamedTuple):
    """Make a symbolic link unless the name is taken."""

    path: str
    to: str

    def describe(self) -> str:
        return f"linking {self.path} to {self.to}"


class Node(NamedTuple):
    """Make a device node (privileged containers)."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int

    def describe(self) -> str:
        return f"making the device {self.path}"


class NodeBind(NamedTuple):
    """Show a device node of the node (containers in a user namespace cannot make any)."""

    path: str
    source: str

    def describe(self) -> str:
        return f"binding the node's {self.source} on {self.path}"


class Attach(NamedTuple):
    """Attach the bind mount that the keeper prepared as its number-th descriptor."""

    number: int
    target: str

    def describe(self) -> str:
        return f"binding a directory of the node on {self.target}"


class Figure(NamedTuple):
    """Attach a file of lxcfs, the number-th descriptor, over the kernel's, where that has one."""

    number: int
    target: str

    def describe(self) -> str:
        return f"binding a file of lxcfs on {self.target}"


class ReadOnly(NamedTuple):
    """Make a tree read-only, where it exists, except for the mounts or paths below in `keep`."""

    path: str
    keep: Sequence[str] = ()

    def describe(self) -> str:
        return f"making {self.path} read-only"


class Seal(NamedTuple):
    """Make one mount that the stage made read-only, but none below it."""

    path: str

    def describe(self) -> str:
        return f"making {self.path} read-only"


class Mask(NamedTuple):
    """Hide a file or directory, where it exists, behind an empty one of ours."""

    path: str
    file: str
    directory: str

    def describe(self) -> str:
        return f"masking {self.path}"


class CgroupNamespace(NamedTuple):
    """Let the container's own cgroup be the root that it sees."""

    def describe(self) -> str:
        return "making the cgroup namespace"


class Console(NamedTuple):
    """Make a terminal in the container's devpts and bind it on this path."""

    path: str

    def describe(self) -> str:
        return f"making the console {self.path}"


class Loopback(NamedTuple):
    """Bring the lo interface up."""

    def describe(self) -> str:
        return "bringing the interface lo up"


class Hostname(NamedTuple):
    """Set the host name of the container's uts namespace."""

    name: str

    def describe(self) -> str:
        return "setting the host name"


Operation = (
    Mount
    | Directory
    | EmptyFile
    | Symlink
    | Node
    | NodeBind
    | Attach
    | Figure
    | ReadOnly
    | Seal
    | Mask
    | CgroupNamespace
    | Console
    | Loopback
    | Hostname
)

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Mount,
        Directory,
        EmptyFile,
        Symlink,
        Node,
        NodeBind,
        Attach,
        Figure,
        ReadOnly,
        Seal,
        Mask,
        CgroupNamespace,
        Console,
        Loopback,
        Hostname,
    )
}


class StartPlan(NamedTuple):
    """Everything that stage.py does: JSON-able.

    namespaces: CLONE_NEW* flags.  capabilities: the mask that init keeps.
    rlimits: (resource, soft, hard), lowered to what the keeper itself may have.
    merge: have the kernel merge equal pages (KSM) of everything that init begets.
    """

    namespaces: int
    operations: tuple[Operation, ...]
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    capabilities: int
    rlimits: tuple[tuple[int, int, int], ...] = ()
    merge: bool = False

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-able data."""
        data = self._asdict()
        data["operations"] = [[type(step).__name__, *step] for step in self.operations]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StartPlan:
        """The plan back from JSON; ValueError, KeyError or TypeError when it is not one."""
        return cls(
            namespaces=int(data["namespaces"]),
            operations=tuple(_KINDS[kind](*fields) for kind, *fields in data["operations"]),
            argv=tuple(str(word) for word in data["argv"]),
            env=tuple((str(name), str(value)) for name, value in data["env"]),
            capabilities=int(data["capabilities"]),
            rlimits=tuple((int(a), int(b), int(c)) for a, b, c in data["rlimits"]),
            merge=bool(data["merge"]),
        )
