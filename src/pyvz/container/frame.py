"""What a restore has to know beside CRIU's images: `pyvz.json` in their directory.

Nothing in it is a path of the node that made it, so it may be used on another one.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.container import devices
from pyvz.container.spec import ContainerSpec
from pyvz.errors import RestoreError
from pyvz.linux import mount
from pyvz.linux.cgroup_inner import Saved
from pyvz.linux.file import read_text_limited, write_atomic

NAME = "pyvz.json"
FORMAT = 1
CONSOLE = "/dev/console"
_DELETED = "//deleted"  # fs/d_path.c
_LIMIT = 8 << 20  # bytes


class External(NamedTuple):
    """A mount that comes from the node.  name: in the images.  target: inside the container."""

    name: str
    target: str


class Frame(NamedTuple):
    """The frame around a set of images.

    record: what the keeper knows of the init (ledger.Record).  ids: first and count, or None
    without a user namespace.  cgroup: the container's cgroup when it was dumped.  inner: limits
    of cgroups inside (linux/cgroup_inner.py).  network: what was in its network namespace.
    made: seconds since 1970.
    """

    uuid: str
    criu: str
    kernel: str
    machine: str
    ids: tuple[int, int] | None
    cgroup: str
    externals: tuple[External, ...]
    record: dict[str, Any]
    inner: Saved
    network: dict[str, Any]
    made: float

    def save(self, images: Path) -> None:
        """Write it beside the images."""
        data = {"format": FORMAT, **self._asdict()}
        write_atomic(images / NAME, json.dumps(data), 0o600)

    @classmethod
    def load(cls, images: Path) -> Frame:
        """Read what `save` has written; raises RestoreError."""
        path = images / NAME
        try:
            data = json.loads(read_text_limited(path, limit=_LIMIT))
            if data.pop("format") != FORMAT:
                raise RestoreError(f"{path} is of a format that this version does not know")
            data["externals"] = tuple(External(*each) for each in data["externals"])
            data["ids"] = None if data["ids"] is None else tuple(map(int, data["ids"]))
            return cls(**{name: data[name] for name in cls._fields})
        except FileNotFoundError:
            raise RestoreError(f"{path} is missing: these are no images of a container") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RestoreError(f"{path} cannot be read: {error}") from error


class Made(NamedTuple):
    """What is asked of the engine for a frame: the keeper's record, the cgroup, the inside's."""

    record: dict[str, Any]
    cgroup: str
    inner: Saved


def describe(spec: ContainerSpec, made: Made, criu: str) -> Frame:
    """Return the frame of a running container; the mounts are looked at now."""
    return Frame(
        uuid=spec.uuid,
        criu=criu,
        kernel=platform.release(),
        machine=platform.machine(),
        ids=None if spec.ids is None else (spec.ids.first, spec.ids.count),
        cgroup=made.cgroup,
        externals=externals(spec, int(made.record["pid"])),
        record=made.record,
        inner=made.inner,
        network={},
        made=time.time(),
    )


def sources(spec: ContainerSpec) -> dict[str, str]:
    """What of the node is mounted inside, by its place there: devices, and binds."""
    found: dict[str, str] = {}
    if spec.ids is not None:  # else they are made, not bound
        nodes = (*devices.STANDARD, *spec.device_nodes)
        found = {node.path: node.source or node.path for node in nodes}
    return found | {bind.target: os.fspath(bind.source) for bind in spec.binds}


def externals(spec: ContainerSpec, pid: int) -> tuple[External, ...]:
    """The mounts of a running container that come from the node.

    So counts a console whose terminal is gone (vzd and the keeper were killed one after the other):
    CRIU could not make that again.
    """
    wanted = sources(spec)
    targets = dict.fromkeys(
        entry.target
        for entry in mount.mounts(pid=pid)
        if entry.target in wanted or (entry.target == CONSOLE and entry.root.endswith(_DELETED))
    )
    return tuple(External(f"pyvz-{number}", target) for number, target in enumerate(targets))
