"""Storage pools: add, look at, change and give up the places in which containers are made.

A pool is a directory and the storage driver of the containers that are made in it (the files are
in store/pools.py).  The homes stay what they are: a container knows its own private area, so that
a pool that is given up, or whose file is damaged, stops no container.  What the pool without a
file means, and the file system that a node makes for itself, is operations/pool.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Busy,
    FileMissing,
    InvalidState,
    StorageError,
    UsageError,
    VZError,
)
from pyvz.linux import mount
from pyvz.model import event
from pyvz.model.vzconf import under
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage import embedded
from pyvz.store.pools import Pool, Pools, check_name
from pyvz.units import MIB, parse_size

FLOOR = 512 << 20  # bytes of a pool that stay free (see spacewatch), at most 5 % of its size
_FLOOR_PART = 20
_COMMON_OPTIONS = ("floor",)


class Volume(NamedTuple):
    """A home in a pool.  driver: "" for a layout that nobody here knows."""

    uuid: str
    name: str
    driver: str
    registered: bool


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as it is now; sizes in bytes.  problem: why it cannot be used, or "" when it can."""

    pool: Pool
    problem: str
    fstype: str = ""
    total: int = 0
    free: int = 0
    floor: int = 0
    capabilities: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()


def states(node: Node) -> list[PoolState]:
    """Return every pool, also those that cannot be used."""
    pools = Pools(node.paths)
    found = [_state(node, each) for each in pools.all()]
    for name, problem in pools.problems():
        found.append(PoolState(Pool(name, "", Path("/"), {}), problem))
    return sorted(found, key=lambda state: state.pool.name)


def state(node: Node, name: str) -> PoolState:
    """Return one pool; raises NotFound, ConfigError."""
    return _state(node, Pools(node.paths).get(name))


def add(
    node: Node,
    name: str,
    *,
    driver: str,
    path: str,
    options: Mapping[str, str] | None = None,
    default: bool = False,
) -> Pool:
    """Make the existing directory `path` the pool `name`, of containers of `driver`.

    Raises BadValue, AlreadyExists, FileMissing, Unsupported (the driver is not known, or cannot
    work on that file system): nothing is changed then.
    """
    check_name(name)
    found = storage.load(driver)
    place = _place(node, path)
    _check_options(found, options or {})
    pools = Pools(node.paths)
    for other in pools.all():
        if other.name == name and not other.builtin:
            raise AlreadyExists(f"There is a storage pool '{name}' already")
        if other.name != name and os.path.realpath(other.path) == os.path.realpath(place):
            raise AlreadyExists(f"{path} is the storage pool '{other.name}' already")
    found.prepare(place, options or {})
    made = Pool(name, driver, place, dict(options or {}), default)
    pools.add(made)
    node.tell(event.POOL_ADD, name=name, path=os.fspath(place))
    return made


def change(
    node: Node,
    name: str,
    *,
    options: Mapping[str, str] | None = None,
    driver: str | None = None,
    default: bool | None = None,
) -> Pool:
    """Change a pool for the containers to come; an option given "" is taken away.

    Raises NotFound, BadValue, Unsupported, InvalidState: nothing is changed then.
    """
    pools = Pools(node.paths)
    old = pools.get(name)
    if default is False and old.default:
        raise InvalidState(
            f"'{name}' is the default pool", hint="Make another one the default instead."
        )
    merged = {key: value for key, value in {**old.options, **(options or {})}.items() if value}
    found = storage.load(driver or old.driver)
    _check_options(found, merged)
    found.prepare(_existing(old.path), merged)
    new = old._replace(driver=found.name, options=merged, default=old.default or bool(default))
    pools.save(new._replace(builtin=False))
    node.tell(event.POOL_SET, name=name, path=os.fspath(old.path))
    return new


def delete(node: Node, name: str) -> Pool:
    """Give up a pool in which no container is; its directory stays.

    Raises NotFound, Busy (names the containers), InvalidState (the one without a file).
    """
    pools = Pools(node.paths)
    old = pools.get(name)
    if old.builtin:
        raise InvalidState(f"'{name}' is the pool of vz.conf (VE_PRIVATE): it cannot be deleted")
    if old.path.is_dir():
        _check_unused(node, old)
        for driver in storage.names():  # containers of other layouts may have been moved here
            storage.load(driver).release(old.path)
    pools.remove(name)
    node.tell(event.POOL_DELETE, name=name, path=os.fspath(old.path))
    return old


def chosen(node: Node, name: str | None) -> Pool:
    """Return the pool called `name`, or the default one; raises NotFound, FileMissing."""
    pools = Pools(node.paths)
    if name is None:
        return pools.default()
    pool = pools.get(name)
    if not pool.builtin:
        _existing(pool.path)
    return pool


def directory(node: Node, destination: str) -> str:
    """Return the directory that a destination means: a word without a slash is a pool's name.

    Raises NotFound, FileMissing.
    """
    if "/" in destination:
        return destination.rstrip("/")
    return os.fspath(chosen(node, destination).path)


def volumes(node: Node, pool: Pool) -> tuple[Volume, ...]:
    """Return the homes in a pool by UUID; only their names and layout marks are read."""
    try:
        entries = sorted(entry.name for entry in os.scandir(pool.path) if entry.name[0] != ".")
    except FileNotFoundError:
        return ()
    # Of thousands: only environments that are here are looked at, and nothing is made twice.
    place = os.fspath(pool.path)
    known = {
        name: env.name
        for env in node.registry.environments()
        for where, _, name in (os.fspath(env.home).rpartition("/"),)
        if where == place
    }
    drivers = {str(each.layout): each.name for each in map(storage.load, storage.names())}
    found = []
    for entry in entries:
        try:
            mark = os.readlink(f"{place}/{entry}/{storage.LAYOUT_LINK}")  # noqa: PTH115
        except OSError:
            continue
        found.append(Volume(entry, known.get(entry, ""), drivers.get(mark, ""), entry in known))
    return tuple(found)


def floor(pool: Pool, total: int) -> int:
    """Return how many bytes of a pool of `total` bytes must stay free."""
    text = pool.options.get("floor")
    if text:
        return parse_size(text, default_unit=MIB)
    return default_floor(total)


def default_floor(total: int) -> int:
    """Return the floor of a pool that says nothing."""
    return min(FLOOR, total // _FLOOR_PART)


def _state(node: Node, pool: Pool) -> PoolState:
    if pool.builtin and pool.driver == "ploop" and embedded.file_of(node.paths).exists():
        pool = pool._replace(path=embedded.directory(node.paths))  # where its homes really go
    try:
        driver = storage.load(pool.driver)
        # The pool of vz.conf is made with the first container in it.
        place = _nearest(pool.path) if pool.builtin else _existing(pool.path)
        space = os.statvfs(place)
        can = driver.capabilities(place)
    except VZError as error:
        return PoolState(pool, error.message)
    except OSError as error:
        return PoolState(pool, f"{pool.path}: {error.strerror}")
    total = space.f_blocks * space.f_frsize
    return PoolState(
        pool=pool,
        problem="",
        fstype=mount.holding_mount(place).fstype,
        total=total,
        free=space.f_bavail * space.f_frsize,
        floor=floor(pool, total),
        capabilities=tuple(name for name, able in can._asdict().items() if able),
        volumes=volumes(node, pool),
    )


def _place(node: Node, path: str) -> Path:
    """Return the directory that `path` means on this node; raises BadValue, FileMissing."""
    place = _existing(under(node.paths.root, os.path.normpath(path)))
    if place == node.paths.root:
        raise BadValue(f"{path} cannot be a storage pool")
    real = Path(os.path.realpath(place))
    inside = [env.home for env in node.registry.environments()]
    for other in (*inside, node.paths.ve_root):
        if real.is_relative_to(os.path.realpath(other)):
            raise BadValue(f"{path} lies in {other} and cannot be a storage pool")
    return place


def _existing(place: Path) -> Path:
    if not place.exists():
        raise FileMissing(f"{place} is not there", hint=f"Make or mount it first: mkdir {place}")
    if not place.is_dir():
        raise StorageError(f"{place} is not a directory")
    return place


def _nearest(place: Path) -> Path:
    return next(each for each in (place, *place.parents) if each.is_dir())


def _check_options(driver: storage.StorageDriver, options: Mapping[str, str]) -> None:
    known = (*_COMMON_OPTIONS, *driver.pool_options)
    for key in options:
        if key not in known:
            raise UsageError(
                f"A pool of {driver.name} has no option '{key}'",
                hint=f"Options: {', '.join(known)}.",
            )
    if options.get("floor"):
        parse_size(options["floor"], default_unit=MIB)
    if options.get("quota", "no") not in {"yes", "no"}:
        raise BadValue(f"quota={options['quota']}: yes or no is needed")


def _check_unused(node: Node, pool: Pool) -> None:
    """Raise Busy when a home is, or is just being made or removed, in the pool."""
    users = [each.name or each.uuid for each in volumes(node, pool)]
    unfinished = (".create-", ".delete-")
    names = (entry.name for entry in os.scandir(pool.path))
    users += [name for name in names if name.startswith(unfinished)]
    if users:
        raise Busy(
            f"The storage pool '{pool.name}' is in use: {len(users)} containers are in it",
            details="\n".join(users[:10]),
            hint="Move them away first: prlctl move NAME --dst POOL",
        )
