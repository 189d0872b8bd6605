"""Move a container or virtual machine to another directory of the node.

QEMU has its files open and knows no path: on one file system a machine may run while its home is
renamed.  To another file system one that runs is mirrored (machinemove.py).
"""

from __future__ import annotations

from pathlib import Path

from pyvz.errors import AlreadyMounted, PrivateExists
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    backuplease,
    home,
    lifecycle,
    machineclone,
    machinemove,
    onlinemove,
    provision,
    storagepool,
)
from pyvz.operations.node import Node
from pyvz.operations.transfer import same_file_system, transfer
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
    parent = storagepool.directory(node, destination)
    place = provision.place(node, f"{parent}/$VEID", old.uuid)
    new = old._replace(home=place)
    with backuplease.lease(node, old, "move"):
        provision.repair(node, old)
        running = node.status(old) in {Status.RUNNING, Status.PAUSED}
        if not running and old.kind == Kind.CT:
            lifecycle.require(node, old, "move")
        if place == old.home:
            raise PrivateExists(f"{old.name} is in {destination} already")
        home.check_place(node, place)
        progress.stage(f"Moving {old.name}")
        if old.kind == Kind.VM:
            _move_machine(node, old, new, progress)
        elif running:
            onlinemove.move(node, old, new, restart=restart, progress=progress)
        else:
            storage.check_unmounted(old.home)
            transfer(node, old, new, progress)
    node.publish("ve-config", new, fields="identity.private")
    return new


def _move_machine(node: Node, old: Environment, new: Environment, progress: Progress) -> None:
    """Move a virtual machine; raises InvalidState, Unsupported where it cannot be while it runs."""
    status = node.status(old)
    machineclone.check_unused(node, old)
    if status == Status.MOUNTED:
        raise AlreadyMounted(f"{old.name} is mounted", hint=f"prlctl umount {old.name}")
    new.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = same_file_system(old.home, new.home.parent)
    if status not in {Status.STOPPED, Status.SUSPENDED} and not beside:
        machinemove.move(node, old, new, progress)
        return

    def fill(staging: Path) -> None:
        machinemove.copy(node, old, staging, progress)

    transfer(node, old, new, progress, fill=None if beside else fill)
