"""Containers whose disk has died under them are stopped, with an event.

A disk that a program of the node shows (qcow2) is gone when that program dies: every access is an
error from then on, and the file system inside refuses writes.  What was synced is on the image.
Going on would be of no use to anybody, so the container is killed, its disk is taken away in
order, and the next start finds it whole (event `disk-failed`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from pyvz.errors import VZError
from pyvz.model.environment import Environment
from pyvz.operations import lifecycle
from pyvz.operations.lifecycle import StopOptions
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage.base import StorageDriver

log = logging.getLogger(__name__)

PAUSE: Final = 1.0  # seconds between two looks


class Watch:
    """What is remembered between two looks; nothing that could not be found out again."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._drivers: dict[tuple[str, Path], StorageDriver | None] = {}
        self._told: set[str] = set()

    def look(self) -> float | None:
        """Stop whose disk has died; return the seconds until the next look, None for never."""
        running = self._node.runtime.running()
        self._told &= set(running)
        watched = 0
        for env in self._node.registry.environments():
            if env.uuid not in running or (driver := self._driver(env)) is None:
                continue
            watched += 1
            if why := driver.failed(env.home):
                self._stop(env, why)
        return PAUSE if watched else None

    def _driver(self, env: Environment) -> StorageDriver | None:
        """Return the driver of a disk that can die; asked once for each home."""
        key = (env.uuid, env.home)
        if key not in self._drivers:
            try:
                driver = storage.find(env.home)
                served = driver.capabilities(env.home.parent).served
            except (VZError, OSError):
                return None
            self._drivers[key] = driver if served else None
        return self._drivers[key]

    def _stop(self, env: Environment, why: str) -> None:
        if env.uuid not in self._told:
            log.error("%s: %s: it is stopped", env.name, why)
            self._node.publish("disk-failed", env, reason=why)
            self._told.add(env.uuid)
        try:
            lifecycle.stop(self._node, env.uuid, options=StopOptions(kill=True))
        except (VZError, OSError) as error:
            log.warning("%s: not stopped although its disk is dead: %s", env.name, error)
