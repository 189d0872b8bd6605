"""Give the space that files inside do not use any more back to the node."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.errors import Unsupported
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import diskmount, home, lifecycle, provision
from pyvz.operations.node import Node
from pyvz.operations.transition import containers_only
from pyvz.storage import base as storage


class Compacted(NamedTuple):
    """What came of it.  freed: bytes that the node has more, by disk."""

    freed: tuple[tuple[str, int], ...]


class Unused(NamedTuple):
    """What a disk takes of the node (allocated) and what is in it (used), in bytes."""

    name: str
    size: int
    allocated: int
    used: int
    autocompact: bool


def unused(node: Node, ref: str) -> list[Unused]:
    """Return the disks of a container that can be compacted; takes no lease.

    Snapshots share blocks with the disk: what is allocated by both counts as the disk's.
    """
    env = node.registry.resolve(ref)
    driver = storage.find(env.home)
    able = driver.capabilities(env.home)
    if not able.compact or not able.image:
        return []
    config = node.registry.config(env)
    known = {disk.disk: disk.entry.autocompact for disk in diskmount.disks_of(env, config)}
    found = []
    many = storage.many_disks(driver, env.home) if able.disks else None
    for name in many.disks(env.home) if many else [storage.ROOT_DISK]:
        usage = many.usage(env.home, disk=name) if many else driver.usage(env.home)
        taken = driver.image_file(env.home, disk=name).stat().st_blocks * 512
        wanted = known.get(name)
        auto = config.disk.autocompact if wanted is None else wanted
        found.append(Unused(name, usage.total, taken, usage.used, bool(auto)))
    return found


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
