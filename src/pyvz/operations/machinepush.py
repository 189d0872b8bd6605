"""Backups in push mode: QEMU copies the disks of a running machine into images that a client names.

The images are made here, empty, and given to QEMU as descriptors (vm/push.py).  A checkpoint may
begin at the same moment; it stays when the copy fails later, as libvirt has it.  The lease is held
until everything is copied.  Failed, called off or dead: the images that were made here are removed.
(Backups into a repository of our own: machinebackup.py.)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import AlreadyExists, InvalidState, NotFound, StorageError, Unsupported, VZError
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import home, machineblockjob, machinedrives
from pyvz.operations.node import Node
from pyvz.store.journal import Journal, Record
from pyvz.vm import image, push
from pyvz.vm.moment import Mark
from pyvz.vm.monitor import Monitor
from pyvz.vm.push import Target

log = logging.getLogger(__name__)

VERB: Final = "machine-push"  # of the journal records that `repair` understands


class Copy(NamedTuple):
    """A disk, and the image that it is copied into.

    since: name of the checkpoint since which what was written is copied, "": all of it.
    reuse: the image is there already.
    """

    disk: str
    path: Path
    format: str
    since: str = ""
    reuse: bool = False


class Push(NamedTuple):
    """A backup in push mode.  begun: called once it goes; marks: bitmaps that begin, by disk."""

    copies: tuple[Copy, ...]
    marks: Mapping[str, Mark]
    begun: Callable[[], None]


def check(node: Node, env: Environment, copies: tuple[Copy, ...]) -> None:
    """Raise what speaks against copies: Unsupported, NotFound, AlreadyExists, InvalidState."""
    if env.uuid not in node.machines.running():
        raise InvalidState(
            f"{env.name} does not run: QEMU copies only disks that are in use",
            hint="Copy its images with qemu-img convert, or use prlctl backup.",
        )
    drives = {each.name: each for each in node.registry.config(env).machine.drives if each.enabled}
    for copy in copies:
        drive = drives.get(copy.disk)
        if drive is None or not drive.is_disk:
            raise NotFound(f"{env.name} has no disk {copy.disk}")
        _check_one(env, drive, copy)


def _check_one(env: Environment, drive: Drive, copy: Copy) -> None:
    if drive.keyid:
        raise Unsupported(
            f"{drive.name} of {env.name} is encrypted: it would be stored in the clear"
        )
    if copy.since and copy.format != "qcow2":
        raise Unsupported(f"An incremental copy of {drive.name} needs a qcow2 image, not raw")
    if copy.reuse:
        found = image.look(copy.path)
        image.check(found, copy.path, copy.format)
        if found.size < machinedrives.size_of(env, drive):
            raise StorageError(f"{copy.path} is smaller than {drive.name} of {env.name}")
    elif os.path.lexists(copy.path):
        raise AlreadyExists(
            f"{copy.path} exists already", hint="--reuse-external writes into an image that does."
        )


def run(node: Node, env: Environment, wanted: Push, progress: Progress) -> None:
    """Copy the disks; the caller holds the lease and has checked.

    Raises MonitorError, StorageError, NoSpace, Cancelled: nothing that was made here is left then.
    """
    monitor = node.machines.monitor(env.uuid)
    drives = {each.name: each for each in node.registry.config(env).machine.drives}
    made = [os.fspath(each.path) for each in wanted.copies if not each.reuse]
    data = home.to_data(env) | {"made": made, "copies": [_told(each) for each in wanted.copies]}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal, ExitStack() as stack:
        stack.callback(journal.done)
        failed = stack.enter_context(ExitStack())
        stack.callback(push.end, monitor)
        push.end(monitor)  # what a killed one has left
        targets = tuple(Target(each.disk, each.format, each.since) for each in wanted.copies)
        for copy, target in zip(wanted.copies, targets, strict=True):
            if not copy.reuse:
                image.create(copy.path, machinedrives.size_of(env, drives[copy.disk]), copy.format)
                failed.callback(_remove, [os.fspath(copy.path)])
            _lay(monitor, copy.path, target)
        push.begin(monitor, targets, wanted.marks)
        wanted.begun()
        progress.stage(f"Copying the disks of {env.name}")
        machineblockjob.follow(partial(push.amount, monitor, targets), progress)
        failed.pop_all()


def _told(copy: Copy) -> dict[str, object]:
    return copy._asdict() | {"path": os.fspath(copy.path)}


def _lay(monitor: Monitor, path: Path, target: Target) -> None:
    descriptor = image.open_image(path, writable=True)
    try:
        push.lay(monitor, target, descriptor)
    finally:
        os.close(descriptor)


def _remove(paths: list[str]) -> None:
    for path in paths:
        with suppress(OSError):
            Path(path).unlink()


def under_way(node: Node, env: Environment) -> tuple[Copy, ...]:
    """Return what is being copied of a machine just now; nothing when nothing is."""
    for record in Journal.all(node.paths):
        if (record.uuid, record.verb) == (env.uuid, VERB):
            return tuple(_copy(row) for row in record.data["copies"])  # type: ignore[attr-defined]
    return ()


def _copy(row: Mapping[str, object]) -> Copy:
    texts = {key: str(row[key]) for key in ("disk", "format", "since")}
    return Copy(path=Path(str(row["path"])), reuse=bool(row["reuse"]), **texts)


def repair(node: Node, record: Record) -> None:
    """Undo what a killed copy left, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished copy of its disks", env.name)
    if env.uuid in node.machines.running():
        with suppress(VZError):
            push.end(node.machines.monitor(env.uuid))
    _remove([str(path) for path in record.data["made"]])  # type: ignore[attr-defined]
    Journal.forget(node.paths, record.uuid)
