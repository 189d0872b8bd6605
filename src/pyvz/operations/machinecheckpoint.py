"""Checkpoints of a virtual machine: what changed on its disks since is known from then on.

    <home>/Checkpoints.json     which there are (store/checkpoints.py)
    in each qcow2 image         a dirty bitmap of the checkpoint's name; that of another image is in
                                QEMU's memory, and ends with it

A checkpoint commits when the file names it, and is gone when the file names it no more: a bitmap
that it does not name is nobody's, and goes when one of that name is begun.  Every bitmap goes on
by itself, so that one can be given up without the others.  They are lost where an image is: QEMU
was killed, a snapshot was switched to, the machine has moved while it ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from pyvz.errors import CheckpointLost, NotFound, Unsupported, VZError
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import (
    backuplease,
    home,
    machine,
    machinebackup,
    machineguest,
    machinepull,
    machinepush,
)
from pyvz.operations.machinepush import Copy, Push
from pyvz.operations.node import Node
from pyvz.operations.transition import require
from pyvz.store import checkpoints
from pyvz.store.checkpoints import Checkpoint
from pyvz.store.pulls import Pull
from pyvz.vm import moment
from pyvz.vm.moment import Bitmap, Execute, Mark

_VERB: Final = "checkpoint"  # of the lease


class Below(NamedTuple):
    """What is deleted: the checkpoint itself, those after it; bitmaps: with what they tell."""

    itself: bool = True
    later: bool = False
    bitmaps: bool = True


class Plan(NamedTuple):
    """How disks are copied.  item: a checkpoint that begins with it; begun: called once it goes."""

    item: Checkpoint | None
    begun: Callable[[], None]


def check_kind(env: Environment) -> None:
    """Raise Unsupported for a container."""
    if env.kind != Kind.VM:
        raise Unsupported(
            f"{env.name} is a container: checkpoints are of virtual machines",
            hint=f"What changed since the last one is all that prlctl backup {env.name} stores.",
        )


def disks_of(node: Node, env: Environment, names: Iterable[str]) -> tuple[Drive, ...]:
    """Return the disks NAMES, which can have a bitmap now; raises Unsupported, NotFound."""
    drives = node.registry.config(env).machine.drives
    running = env.uuid in node.machines.running()
    there = {each.name: each for each in drives if each.is_disk and each.enabled}
    wanted = list(names)
    for name in wanted:
        if name not in there:
            raise NotFound(f"{env.name} has no disk {name}")
        drive = there[name]
        if drive.device or drive.keyid or not (running or machinebackup.marked(drive)):
            raise Unsupported(
                f"{name} of {env.name} is no qcow2 image without encryption: it cannot have a"
                " checkpoint" + ("" if drive.device or drive.keyid else " while it does not run"),
                hint="Leave it out: <disk name=... checkpoint='no'/>.",
            )
    if not wanted:
        raise Unsupported(f"{env.name} has no disk for a checkpoint")
    return tuple(there[name] for name in wanted)


def create(
    node: Node, ref: str, item: Checkpoint, progress: Progress, *, quiesce: bool = False
) -> None:
    """Begin a checkpoint on the disks that ITEM names.

    quiesce: only with the guest's file systems still; raises Unsupported when its agent is silent.
    Raises AlreadyExists, BadValue, NotFound, Unsupported, StorageError: there is none then.
    """
    env = node.registry.resolve(ref)
    with node.lease(env, _VERB):
        check_kind(env)
        machine.repair(node, env)
        require(node, env, "backup")
        drives = disks_of(node, env, item.disks)
        known = checkpoints.load(env.home).added(item)
        progress.stage(f"Creating the checkpoint {item.name}")
        with ExitStack() as failed:
            if env.uuid in node.machines.running():
                _begin(node, env, _marks(drives, item.name), quiesce=quiesce, failed=failed)
            else:
                _begin_stopped(node, env, (item.name, drives), failed)
            checkpoints.save(env.home, known)
            failed.pop_all()
    node.publish("ve-checkpoint", env, checkpoint=item.name)


def _marks(drives: Iterable[Drive], name: str) -> Mapping[str, Mark]:
    """Return the bitmaps of a checkpoint, by disk."""
    return {drive.name: machinebackup.mark_of(drive, name) for drive in drives}


def _begin(
    node: Node, env: Environment, marks: Mapping[str, Mark], *, quiesce: bool, failed: ExitStack
) -> None:
    """Begin all bitmaps of a running machine at one moment."""
    monitor = node.machines.monitor(env.uuid)
    clear(monitor.execute, marks)
    actions = {"actions": [moment.added(disk, mark) for disk, mark in marks.items()]}
    if quiesce:
        with machineguest.frozen(node, env) as still:
            if not still:
                raise Unsupported(
                    f"The file systems of {env.name} cannot be kept still: its agent is silent"
                )
            monitor.execute("transaction", actions)
    else:
        monitor.execute("transaction", actions)
    failed.callback(clear, monitor.execute, marks)


def _begin_stopped(
    node: Node, env: Environment, mark: tuple[str, tuple[Drive, ...]], failed: ExitStack
) -> None:
    """Begin the bitmaps one by one: nobody writes."""
    name, drives = mark
    for drive in drives:
        with machinebackup.asked(node, env, drive) as (execute, disk):
            clear(execute, {disk: Mark(name)})
            execute("transaction", {"actions": [moment.added(disk, Mark(name))]})
        failed.callback(_forget, node, env, drive, frozenset({name}))


def clear(execute: Execute, marks: Mapping[str, Mark]) -> None:
    """Remove the bitmaps of those names, by disk, where there is one that is nobody's."""
    for disk, mark in marks.items():
        if mark.name in moment.every_bitmap(execute, disk):
            execute("block-dirty-bitmap-remove", {"node": disk, "name": mark.name})


def push(node: Node, ref: str, copies: tuple[Copy, ...], plan: Plan, progress: Progress) -> None:
    """Copy disks of a running machine, as they are now, into images, to the end.

    Raises CheckpointLost, Unsupported, AlreadyExists, InvalidState, StorageError, Cancelled.
    """
    env = node.registry.resolve(ref)
    with (
        backuplease.lease(node, env, "backup"),
        home.storage_errors(f"{env.name} could not be backed up"),
    ):
        machine.repair(node, env)
        machinepush.check(node, env, copies)
        marks, begun = _going_on(node, env, plan, {each.disk: each.since for each in copies})
        machinepush.run(node, env, Push(copies, marks, begun), progress)


def pull(node: Node, ref: str, wanted: Pull, plan: Plan, progress: Progress) -> None:
    """Serve disks of a running machine, as they are now, until it is called off; that is no error.

    The lease is held until they are served.  Raises as `push` does, and Locked.
    """
    env = node.registry.resolve(ref)
    with (
        home.storage_errors(f"{env.name} could not be backed up"),
        backuplease.alone_with(node, env.uuid),
        ExitStack() as held,
        ExitStack() as stack,
    ):
        held.enter_context(node.lease(env, "backup"))
        machine.repair(node, env)
        machinepull.check(node, env, wanted)
        marks, begun = _going_on(
            node, env, plan, {each.disk: each.since for each in wanted.exports}
        )
        stack.callback(machinebackup.tidy, node, env)
        monitor = machinepull.begin(node, env, wanted, marks)
        begun()
        held.close()
        machinepull.wait(env, monitor, wanted, progress)


def _going_on(
    node: Node, env: Environment, plan: Plan, since: Mapping[str, str]
) -> tuple[Mapping[str, Mark], Callable[[], None]]:
    """Check the checkpoints that a backup goes on from, SINCE them by disk.

    Returns the bitmaps that begin with it, by disk, and what is to be called when they have.
    """
    for disk, name in since.items():
        if name:
            check_usable(node, env, name, (disk,))
    known = checkpoints.load(env.home)
    marks: Mapping[str, Mark] = {}
    if plan.item is not None:
        marks = _marks(disks_of(node, env, plan.item.disks), plan.item.name)
        known = known.added(plan.item)
        clear(node.machines.monitor(env.uuid).execute, marks)

    def begun() -> None:
        checkpoints.save(env.home, known)
        plan.begun()

    return marks, begun


def delete(node: Node, ref: str, name: str, below: Below, progress: Progress) -> None:
    """Give up a checkpoint, or those after it; raises CheckpointNotFound, InvalidState."""
    env = node.registry.resolve(ref)
    with node.lease(env, _VERB):
        machine.repair(node, env)
        require(node, env, "backup")
        known = checkpoints.load(env.home)
        gone = [known.get(name)] if below.itself else []
        gone += known.after(name) if below.later else ()
        progress.stage(f"Deleting the checkpoint {name}")
        names = frozenset(each.name for each in gone)
        checkpoints.save(env.home, known.without(names))
        if below.bitmaps:
            disks = {disk for each in gone for disk in each.disks}
            for drive in node.registry.config(env).machine.drives:
                able = drive.enabled and machinebackup.has_marks(node, env, drive)
                if drive.name in disks and able:
                    _forget(node, env, drive, names)
    for each in gone:
        node.publish("ve-checkpoint-delete", env, checkpoint=each.name)


def _forget(node: Node, env: Environment, drive: Drive, names: frozenset[str]) -> None:
    """Remove bitmaps; one that stays only costs a little."""
    with suppress(VZError, OSError), machinebackup.asked(node, env, drive) as (execute, disk):
        for name in names & moment.every_bitmap(execute, disk).keys():
            with suppress(VZError):
                execute("block-dirty-bitmap-remove", {"node": disk, "name": name})


def describe(node: Node, ref: str, name: str, text: str) -> None:
    """Change the description of a checkpoint; raises CheckpointNotFound."""
    env = node.registry.resolve(ref)
    with node.lease(env, _VERB):
        known = checkpoints.load(env.home)
        checkpoints.save(env.home, known.changed(known.get(name)._replace(description=text)))


def bitmaps(node: Node, env: Environment, item: Checkpoint) -> Mapping[str, Bitmap]:
    """Return the bitmaps of a checkpoint of a machine that runs, by disk; raises NotRunning."""
    execute = node.machines.monitor(env.uuid).execute
    found = {disk: moment.every_bitmap(execute, disk).get(item.name) for disk in item.disks}
    return {disk: each for disk, each in found.items() if each is not None}


def check_usable(node: Node, env: Environment, name: str, disks: Iterable[str]) -> None:
    """Raise CheckpointNotFound, CheckpointLost when it cannot tell what changed on DISKS."""
    item = checkpoints.load(env.home).get(name)
    there = bitmaps(node, env, item)
    for disk in disks:
        if disk not in there or not there[disk].good:
            raise CheckpointLost(
                f"What changed on {disk} of {env.name} since the checkpoint {name} is not known",
                hint="Its QEMU was killed (or has ended, of a disk that is no qcow2 image), it has"
                " moved, or is another disk: back it up whole.",
            )
