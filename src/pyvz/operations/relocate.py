"""Move a container to another directory of the node."""

from __future__ import annotations

import os

from pyvz.errors import PrivateExists
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import home, lifecycle, onlinemove, provision, storagepool
from pyvz.operations.node import Node
from pyvz.operations.transfer import transfer
from pyvz.operations.transition import containers_only
from pyvz.storage import base as storage


def move(
    node: Node,
    ref: str,
    destination: str,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> Environment:
    """Move the home of the container into the directory or storage pool `destination`.

    A word without a slash is the name of a pool.  The disk keeps its driver.  restart: a running
    one that has to be stopped for it may be (onlinemove.py).
    Raises NotFound (pool), Unsupported (the driver cannot work there), AlreadyRunning,
    AlreadyMounted, PrivateExists, NoSpace, Cancelled: nothing has changed then.
    """
    progress = progress or NoProgress()
    old = node.registry.resolve(ref)
    containers_only(old, "its home cannot be moved by this version")
    parent = destination.rstrip("/")
    if "/" not in destination:
        parent = os.fspath(storagepool.chosen(node, destination).path)
    place = provision.place(node, f"{parent}/$VEID", old.uuid)
    new = old._replace(home=place)
    with node.lease(old, "move"):
        provision.repair(node, old)
        running = node.status(old) in {Status.RUNNING, Status.PAUSED}
        if not running:
            lifecycle.require(node, old, "move")
        if place == old.home:
            raise PrivateExists(f"{old.name} is in {destination} already")
        home.check_place(node, place)
        progress.stage(f"Moving {old.name}")
        if running:
            onlinemove.move(node, old, new, restart=restart, progress=progress)
        else:
            storage.check_unmounted(old.home)
            transfer(node, old, new, progress)
    node.publish("ve-config", new, fields="identity.private")
    return new
