"""Containers on sparse images are paused before their pool is full, and go on when there is space.

A full pool below a sparse image is data loss for the file system inside it ("failed to convert
unwritten extents -- potential data loss"), which the container cannot see coming.  So while such
containers run, the free space of their pools is looked at; the less there is, the sooner again.
Below the floor (storagepool.floor) every container on such an image in the pool is paused
(event `pool-full`); when a quarter more than the floor is free they go on (event `pool-ok`).

    <run>/paused-for-space/<uuid>    whom we paused; outlives vzd, not a reboot (nor do they)

A container that somebody resumes meanwhile is paused again as long as there is no space; one that
an administrator has paused is never resumed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import VZError
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.operations import lifecycle, storagepool
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.pools import Pools

log = logging.getLogger(__name__)

FASTEST: Final = 0.5  # seconds between two looks
SLOWEST: Final = 10.0
_RATE: Final = 1 << 30  # bytes that may be written in a second: so often must be looked
_AGAIN: Final = 1.25  # times the floor must be free before paused ones go on
_SYS_BLOCK: Final = "/sys/dev/block"
_MAX_NESTED: Final = 4


class Space(NamedTuple):
    """A file system that must not become full; sizes in bytes."""

    path: Path
    total: int
    free: int


class Watch:
    """What is remembered between two looks; nothing that could not be found out again."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._directory = node.paths.run / "paused-for-space"
        self._on_image: dict[tuple[str, Path], bool] = {}

    def look(self) -> float | None:
        """Pause and resume as needed; return the seconds until the next look, None for never.

        Never fails for one container or pool that cannot be looked at.
        """
        running = self._node.runtime.running()
        known = {env.uuid: env for env in self._node.registry.environments()}
        ours = [known[uuid] for uuid in running if uuid in known and self._is_sparse(known[uuid])]
        self._forget(uuid for uuid in self._paused() if uuid not in running)
        places: dict[Path, list[Environment]] = {}
        for env in ours:
            places.setdefault(env.home.parent, []).append(env)
        if not places:
            return None
        return min(self._attend(place, there) for place, there in places.items())

    def _attend(self, place: Path, there: list[Environment]) -> float:
        """Look at one pool; return the seconds until it must be looked at again."""
        try:
            above = self._above_floor(place)
        except OSError as error:
            log.warning("the space of %s cannot be seen: %s", place, error)
            return SLOWEST
        paused = self._paused()
        for env in there:
            if above.margin < 0:
                self._pause(env, above)
            elif env.uuid in paused and above.margin > above.floor * (_AGAIN - 1):
                self._resume(env, above)
        return max(FASTEST, min(SLOWEST, above.margin / _RATE))

    def _above_floor(self, place: Path) -> _Margin:
        """Return how much there is above the floor where there is least of it."""
        pool = Pools(self._node.paths).find(place / "any")
        margins = []
        for space in spaces(place):
            default = storagepool.default_floor(space.total)
            floor = storagepool.floor(pool, space.total) if pool else default
            margins.append(_Margin(space.free - floor, floor, space, pool.name if pool else ""))
        return min(margins, key=lambda margin: margin.margin)

    def _pause(self, env: Environment, above: _Margin) -> None:
        if self._node.status(env) != Status.RUNNING:
            return
        marker = self._directory / env.uuid
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        marker.touch()
        try:
            lifecycle.pause(self._node, env.uuid)
        except (VZError, OSError) as error:
            marker.unlink(missing_ok=True)
            log.warning("%s: not paused although its pool is full: %s", env.name, error)
            return
        log.error("%s: paused, %s is full (%d bytes free)", env.name, above.space.path, above.free)
        self._tell("pool-full", env, above)

    def _resume(self, env: Environment, above: _Margin) -> None:
        if self._node.status(env) == Status.PAUSED:
            try:
                lifecycle.resume(self._node, env.uuid)
            except (VZError, OSError) as error:
                log.warning("%s: not resumed although there is space: %s", env.name, error)
                return
            log.info("%s: goes on, there is space again in %s", env.name, above.space.path)
            self._tell("pool-ok", env, above)
        self._forget([env.uuid])

    def _tell(self, name: str, env: Environment, above: _Margin) -> None:
        path = os.fspath(above.space.path)
        self._node.publish(name, env, pool=above.pool, path=path, free=str(above.free))

    def _paused(self) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(self._directory)}
        except FileNotFoundError:
            return set()

    def _forget(self, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            (self._directory / uuid).unlink(missing_ok=True)

    def _is_sparse(self, env: Environment) -> bool:
        """Whether the disk is an image on a device of its own; asked once for each home."""
        key = (env.uuid, env.home)
        if key not in self._on_image:
            try:
                driver = storage.find(env.home)
                self._on_image[key] = driver.capabilities(env.home.parent).block_device
            except (VZError, OSError):
                return False
        return self._on_image[key]


class _Margin(NamedTuple):
    """margin: bytes that are free above the floor of `space`."""

    margin: int
    floor: int
    space: Space
    pool: str

    @property
    def free(self) -> int:
        return self.space.free


def spaces(place: Path) -> list[Space]:
    """Return the file system of `place`, and those below it when it lies in a file itself."""
    found = [_space(place)]
    while len(found) < _MAX_NESTED:
        number = found[-1].path.stat().st_dev
        backing = Path(f"{_SYS_BLOCK}/{os.major(number)}:{os.minor(number)}/loop/backing_file")
        try:
            image = Path(backing.read_text(encoding="utf-8").rstrip("\n"))
        except OSError:
            break
        if not image.parent.is_dir():
            break
        found.append(_space(image.parent))
    return found


def _space(path: Path) -> Space:
    space = os.statvfs(path)
    return Space(path, space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize)
