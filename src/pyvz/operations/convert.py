"""Convert a stopped container to another layout (simfs, ploop, ...)."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.model.environment import Environment
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import convertlayout, home, image, lifecycle, provision
from pyvz.operations.node import Node
from pyvz.operations.transition import containers_only
from pyvz.storage import base as storage
from pyvz.storage.base import StorageDriver


class Converted(NamedTuple):
    """before: the former layout.  files: how many were copied and compared."""

    before: str
    files: int


def convert(node: Node, ref: str, layout: str, *, progress: Progress | None = None) -> Converted:
    """Give the stopped container disks of another layout with the same content.

    layout: a driver, or a number of the original ("5").  There already: nothing happens.
    Raises AlreadyRunning, InvalidState (snapshots, more disks than it can have), NoSpace,
    StorageError (a copy differs), Cancelled: nothing has changed then.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    containers_only(env, "its disks have no layout to convert")
    target = storage.load(provision.driver_name(node, layout))
    with node.lease(env, convertlayout.VERB):
        provision.repair(node, env)
        lifecycle.require(node, env, convertlayout.VERB)
        source = storage.find(env.home)
        if source.name == target.name:
            return Converted(source.name, 0)
        storage.check_unmounted(env.home)
        files = 0
        if not _handed_over(env, source, target, progress):
            convertlayout.check(env, source, target)
            files = convertlayout.change(node, env, (source, target), progress)
    node.publish("ve-config", env, fields="disk.layout")
    return Converted(source.name, files)


def _handed_over(
    env: Environment, source: StorageDriver, target: StorageDriver, progress: Progress
) -> bool:
    """Let one driver take the other's disk as it is, with its snapshots, where they can."""
    with home.storage_errors(f"The disk of {env.name} could not be converted"):
        if target.adopt(env.home):
            return True
        if not source.hand_over(env.home, target.name, progress):
            return False
        image.complete(env.home / storage.ROOT_DISK, progress)
    return True
