"""Convert a stopped container to another layout (simfs, ploop, ...)."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.model.task import NoProgress, Progress
from pyvz.operations import convertlayout, lifecycle, provision
from pyvz.operations.node import Node
from pyvz.storage import base as storage


class Converted(NamedTuple):
    """before: the former layout.  files: how many were copied and compared."""

    before: str
    files: int


def convert(node: Node, ref: str, layout: str, *, progress: Progress | None = None) -> Converted:
    """Give the stopped container a disk of another layout with the same content.

    layout: a driver, or a number of the original ("5").  There already: nothing happens.
    Raises AlreadyRunning, InvalidState (snapshots, more disks), NoSpace, StorageError (the copy
    differs), Cancelled: nothing has changed then.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    target = storage.load(provision.driver_name(node, layout))
    with node.lease(env, convertlayout.VERB):
        provision.repair(node, env)
        lifecycle.require(node, env, convertlayout.VERB)
        source = storage.find(env.home)
        if source.name == target.name:
            return Converted(source.name, 0)
        convertlayout.check(env, source)
        storage.check_unmounted(env.home)
        files = convertlayout.change(node, env, (source, target), progress)
    node.publish("ve-config", env, fields="disk.layout")
    return Converted(source.name, files)
