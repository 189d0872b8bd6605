"""What the engine needs to know to start one container."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.container.devices import DeviceNode
from pyvz.model.limits import IdRange, Limits


class Bind(NamedTuple):
    """A directory or file of the node that is shown inside.

    target: absolute path inside.  idmap: owners on disk are the container's own ids (0..65535),
    not the node's; needs a file system with idmapped mounts.
    """

    source: Path
    target: str
    read_only: bool = False
    idmap: bool = True


class ContainerSpec(NamedTuple):
    """One container as the engine sees it.

    root: its mounted tree on the node, with unshifted owners.  ids: None means no user namespace:
    root inside is root on the node.  caps: names of capability.NAMES that anybody inside may have.
    nesting: containers may run inside (CRIU cannot dump it then).  log: file that the console's
    output is appended to.
    """

    uuid: str
    hostname: str
    root: Path
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    ids: IdRange | None
    caps: frozenset[str]
    nesting: bool
    limits: Limits
    device_nodes: tuple[DeviceNode, ...] = ()
    binds: tuple[Bind, ...] = ()
    log: Path | None = None
    network_namespace: bool = True
    time_namespace: bool = True
