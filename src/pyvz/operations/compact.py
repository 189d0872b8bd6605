"""Give the space that files inside do not use any more back to the node."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.errors import Unsupported
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import home, lifecycle, provision
from pyvz.operations.node import Node
from pyvz.operations.transition import containers_only
from pyvz.storage import base as storage


class Compacted(NamedTuple):
    """What came of it.  freed: bytes that the node has more, by disk."""

    freed: tuple[tuple[str, int], ...]


def compact(node: Node, ref: str, *, progress: Progress | None = None) -> Compacted:
    """Compact every disk in the home of a container, which may run.

    Raises Unsupported, StorageError, Cancelled (between two disks).
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    containers_only(env, "its disks give space back by themselves (discard)")
    with node.lease(env, "compact"):
        provision.repair(node, env)
        lifecycle.require(node, env, "compact")
        driver = storage.find(env.home)
        able = driver.capabilities(env.home)
        if not able.compact:
            raise Unsupported(f"The disk of {env.name} (layout {driver.name}) is never too large")
        names = [storage.ROOT_DISK]
        if able.disks:
            names = storage.many_disks(driver, env.home).disks(env.home)
        freed = []
        with home.storage_errors(f"The disk of {env.name} could not be compacted"):
            for name in names:
                progress.check()
                progress.stage(f"Compacting {name}")
                freed.append((name, driver.compact(env.home, disk=name)))
    return Compacted(tuple(freed))
