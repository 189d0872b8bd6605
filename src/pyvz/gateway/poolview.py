"""Pools as clients see them: ours with the homes of containers, and directories of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from pyvz.errors import VZError
from pyvz.gateway import failure, imagepools
from pyvz.gateway.failure import Failure
from pyvz.gateway.imagepools import ImageFile, ImagePool
from pyvz.operations import storagepool
from pyvz.operations.node import Node
from pyvz.operations.storagepool import PoolState
from pyvz.storage import base as storage

Sizes = dict[str, int]


class VolumeView(NamedTuple):
    """A volume.  alias: another name by which it is found.  kind: dir or file."""

    pool: str
    name: str
    path: Path
    kind: str
    format: str
    sizes: Callable[[], Sizes]
    alias: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """The structure `storage_vol` of the protocol."""
        return {"pool": self.pool, "name": self.name, "key": os.fspath(self.path)}


class PoolView(NamedTuple):
    """A pool.  problem: why it cannot be used.  images: a directory of images; None: of homes."""

    name: str
    uuid: str
    path: Path
    problem: str
    total: int
    free: int
    volumes: Callable[[], list[VolumeView]]
    images: ImagePool | None = None

    @property
    def active(self) -> bool:
        """Whether it can be used."""
        return not self.problem and (self.images is None or self.images.active)

    @property
    def autostart(self) -> bool:
        """Whether it is there when the node is; those of homes always are."""
        return self.images is None or self.images.autostart

    @property
    def key(self) -> dict[str, Any]:
        """The structure `storage_pool` of the protocol."""
        return {"name": self.name, "uuid": self.uuid}

    @property
    def sizes(self) -> Sizes:
        """Room in the pool."""
        used = max(0, self.total - self.free)
        return {"capacity": self.total, "allocation": used, "available": self.free}


def every(node: Node) -> Iterator[PoolView]:
    """Yield every pool; a name of ours wins."""
    names = set()
    for state in storagepool.states(node):
        names.add(state.pool.name)
        yield _of_homes(state)
    for pool in imagepools.known(node):
        if pool.name not in names:
            yield _of_images(pool)


def named(node: Node, name: str) -> PoolView:
    """Return the pool with that name; raises Failure (49)."""
    for each in every(node):
        if each.name == name:
            return each
    raise Failure(failure.NO_POOL, f"Storage pool not found: no pool with the name '{name}'")


def of_images(node: Node, name: str) -> tuple[PoolView, ImagePool]:
    """Return a directory of images; raises Failure (49), (84) for a pool of homes."""
    state = named(node, name)
    if state.images is None:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The pool {state.name} is changed with prlsrvctl pool, and what is in it with prlctl",
        )
    return state, state.images


def active(node: Node, name: str) -> PoolView:
    """Return a pool that can be used; raises Failure (49, 55)."""
    state = named(node, name)
    if not state.active:
        reason = f": {state.problem}" if state.problem else ""
        raise Failure(
            failure.OPERATION_INVALID, f"storage pool '{state.name}' is not active{reason}"
        )
    return state


def volume(node: Node, vol: dict[str, Any]) -> VolumeView:
    """Return the volume that a client names; raises Failure (49, 50, 55)."""
    for each in active(node, vol["pool"]).volumes():
        if each.name == vol["name"]:
            return each
    raise Failure(failure.NO_VOLUME, f"Storage volume not found: '{vol['name']}'")


def uuid_of(name: str, path: Path | str) -> str:
    """Return the UUID of a pool of homes, which has none of its own: it follows from the place."""
    return str(uuid5(NAMESPACE_URL, f"pyvz:{name}:{path}"))


def _of_homes(state: PoolState) -> PoolView:
    uuid = uuid_of(state.pool.name, state.pool.path)
    found = [
        VolumeView(
            state.pool.name, each.uuid, state.pool.path / each.uuid, "dir", "dir",
            partial(_usage, state.pool.path / each.uuid), each.name,
        )
        for each in state.volumes
    ]  # fmt: skip
    return PoolView(
        state.pool.name, uuid, state.pool.path, str(state.problem or ""), state.total, state.free,
        lambda: found,
    )  # fmt: skip


def _of_images(pool: ImagePool) -> PoolView:
    try:
        room = os.statvfs(pool.path)
    except OSError as error:
        return PoolView(
            pool.name, pool.uuid, pool.path, str(error.strerror), 0, 0, list, images=pool
        )
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    return PoolView(
        pool.name, pool.uuid, pool.path, "", total, free, partial(_images, pool), images=pool
    )


def _images(pool: ImagePool) -> list[VolumeView]:
    return [
        VolumeView(pool.name, each.path.name, each.path, "file", each.format, partial(_room, each))
        for each in imagepools.files(pool)
    ]


def _room(each: ImageFile) -> Sizes:
    return {"capacity": each.capacity, "allocation": each.allocation}


def _usage(home: Path) -> Sizes:
    try:
        usage = storage.find(home).usage(home)
    except (VZError, OSError):
        return {"capacity": 0, "allocation": 0}
    return {"capacity": usage.total, "allocation": usage.used}
