"""What can be done to a disk of a running machine: it is copied, or made whole (libvirt's blockcopy
and blockpull).

A linked clone's disk that is made whole has nothing below it any more; vm.conf says so once QEMU
has done it.  Dies vzd in between, vm.conf names an image that nothing is read of, which does no
harm.  A copy goes on with its disk until it is ended (blockjob --abort), and is of that moment; the
machine never goes over to it, since all that knows its disks calls them by QEMU's names of them.
Meanwhile it can be worked in as during a backup (backuplease.py); making whole keeps the lease.
Failed, called off or dead: the image of a copy that was made here is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import (
    AlreadyExists,
    InvalidState,
    NotFound,
    NotRunning,
    StorageError,
    Unsupported,
)
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import (
    backuplease,
    home,
    machine,
    machinebackup,
    machineblockjob,
    machinedrives,
    machineset,
)
from pyvz.operations.node import Node
from pyvz.store import copies, savedstates
from pyvz.store.copies import Copying
from pyvz.vm import blockjob, image
from pyvz.vm.monitor import Monitor


class Copy(NamedTuple):
    """A disk, and the image that it is copied into.  reuse: the image is there already."""

    disk: str
    path: Path
    format: str
    reuse: bool = False
    speed: int = 0


def copy(node: Node, ref: str, wanted: Copy, begun: Callable[[], None], progress: Progress) -> None:
    """Copy a disk of a running machine until the job is ended; BEGUN is called once it goes.

    Raises NotRunning, NotFound, Unsupported, AlreadyExists, StorageError, NoSpace, MonitorError.
    """
    env = node.registry.resolve(ref)
    with (
        home.storage_errors(f"{wanted.disk} of {env.name} could not be copied"),
        backuplease.alone_with(node, env.uuid),
        ExitStack() as held,
        ExitStack() as stack,
    ):
        held.enter_context(node.lease(env, "copy"))
        machine.repair(node, env)
        monitor = _running(node, env)
        drive = _drive(node, env, wanted.disk)
        size = _check_copy(env, drive, wanted)
        directory = backuplease.directory(node, env.uuid)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        copies.save(directory, Copying(drive.name, "" if wanted.reuse else os.fspath(wanted.path)))
        stack.callback(machinebackup.tidy, node, env)
        _begin(monitor, wanted, size)
        begun()
        held.close()
        progress.stage(f"Copying {drive.name} of {env.name}")
        name = blockjob.COPY + drive.name
        machineblockjob.follow(partial(blockjob.amount, monitor, name), progress)
        copies.save(directory, Copying(drive.name))


def _begin(monitor: Monitor, wanted: Copy, size: int) -> None:
    if not wanted.reuse:
        image.create(wanted.path, size, wanted.format)
    descriptor = image.open_image(wanted.path, writable=True)
    try:
        blockjob.copy(monitor, wanted.disk, (descriptor, wanted.format), wanted.speed)
    finally:
        os.close(descriptor)


def pull(
    node: Node, ref: str, disk: str, begun: Callable[[], None], progress: Progress, *, speed: int
) -> None:
    """Make the disk of a linked clone whole while it runs; BEGUN is called once it goes.

    Raises NotRunning, NotFound, InvalidState, Unsupported, NoSpace, MonitorError.
    """
    env = node.registry.resolve(ref)
    with (
        backuplease.lease(node, env, "pull"),
        home.storage_errors(f"{disk} of {env.name} could not be made whole"),
    ):
        machine.repair(node, env)
        monitor = _running(node, env)
        drive = _drive(node, env, disk)
        if not drive.base:
            raise InvalidState(f"{disk} of {env.name} is whole: there is no image below it")
        if savedstates.load(env.home).items:
            raise Unsupported(
                f"{env.name} has snapshots, which need the image below {disk}",
                hint="Delete them first: virsh snapshot-delete, or prlctl snapshot-delete.",
            )
        with machineblockjob.job(node, env, drive):
            blockjob.stream(monitor, disk, speed)
            begun()
            progress.stage(f"Reading {drive.base}")
            name = blockjob.STREAM + disk
            machineblockjob.follow(partial(blockjob.amount, monitor, name), progress)
            _forget_base(node, env, disk)


def _forget_base(node: Node, env: Environment, disk: str) -> None:
    old = node.registry.config(env)
    drives = [each._replace(base="") if each.name == disk else each for each in old.machine.drives]
    machineset.save(node, env, old, old.changed({"machine.drives": tuple(drives)}))
    node.publish("ve-config", env, fields="machine.drives")


def _running(node: Node, env: Environment) -> Monitor:
    if env.uuid not in node.machines.running():
        raise NotRunning(
            f"{env.name} does not run: its disks are copied and made whole by its QEMU",
            hint="Use qemu-img, or prlctl clone.",
        )
    return node.machines.monitor(env.uuid)


def _drive(node: Node, env: Environment, disk: str) -> Drive:
    for drive in node.registry.config(env).machine.drives:
        if drive.name == disk and drive.is_disk and drive.enabled:
            return drive
    raise NotFound(f"{env.name} has no disk {disk}")


def _check_copy(env: Environment, drive: Drive, wanted: Copy) -> int:
    """Return the size of the copy; raises Unsupported, AlreadyExists, StorageError."""
    if drive.keyid:
        raise Unsupported(
            f"{drive.name} of {env.name} is encrypted: it would be stored in the clear"
        )
    size = machinedrives.size_of(env, drive)
    if wanted.reuse:
        found = image.look(wanted.path)
        image.check(found, wanted.path, wanted.format)
        if found.size != size:
            raise StorageError(f"{wanted.path} is not as large as {drive.name} of {env.name}")
    elif os.path.lexists(wanted.path):
        raise AlreadyExists(
            f"{wanted.path} exists already", hint="--reuse-external writes into an image that does."
        )
    return size
