"""Snapshots of a virtual machine: the verbs; what each of them does is in machineshot.py."""

from __future__ import annotations

from typing import NamedTuple

from pyvz.errors import SnapshotNotFound, Unsupported
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations import (
    backuplease,
    home,
    machine,
    machinepci,
    machinepending,
    machineshot,
)
from pyvz.operations.machineshot import POWERON, SHOT, SWITCH
from pyvz.operations.node import Node
from pyvz.operations.transition import require
from pyvz.store import savedstates
from pyvz.store.journal import Journal
from pyvz.store.savedstates import SavedState


class Taken(NamedTuple):
    """A new snapshot.  memory: it has the memory of a machine that ran."""

    guid: str
    running: bool
    memory: bool


def create(
    node: Node, env: Environment, item: SavedState, progress: Progress, *, memory: bool = True
) -> Taken:
    """Keep disks, configuration and, of a machine that runs, the memory if it is wanted.

    Raises AlreadyExists, BadValue, Unsupported, SnapshotError: nothing has changed then.
    """
    with backuplease.lease(node, env, "snapshot"):
        machine.repair(node, env)
        status = require(node, env, "snapshot")
        running = status in {Status.RUNNING, Status.PAUSED}
        config = node.registry.config(env)
        disks = machineshot.disks_of(config)
        if running:
            monitor = node.machines.monitor(env.uuid)
            machinepending.check_plugged(env, config, monitor, "have a snapshot")
        memory = memory and running
        if memory and not disks:
            raise Unsupported("A virtual machine without a disk has no place for its memory")
        if memory:
            machinepci.refuse(node, env, "its memory cannot be in a snapshot")
        states = savedstates.load(env.home).with_snapshot(
            item._replace(state=POWERON if memory else savedstates.POWEROFF)
        )
        progress.stage(f"Creating snapshot {item.guid}")
        data = home.to_data(env) | {"guid": item.guid, "ran": status == Status.RUNNING}
        with Journal.begin(node.paths, env.uuid, SHOT, data) as journal:
            try:
                machineshot.take(node, env, item.guid, disks, running=running, memory=memory)
                savedstates.save(env.home, states)
            except BaseException:
                machineshot.discard(node, env, item.guid, disks)
                journal.done()
                raise
    node.publish("ve-snapshot", env, guid=item.guid)
    return Taken(item.guid, running, memory)


def switch(
    node: Node,
    env: Environment,
    guid: str | None,
    *,
    resume: bool = True,
    progress: Progress,
) -> str:
    """Make the machine what it was at a snapshot; with memory (and resume) it runs again.

    What is on its disks and in its memory now is lost.  Raises SnapshotNotFound, SnapshotError.
    """
    with backuplease.lease(node, env, "snapshot-switch"):
        machine.repair(node, env)
        states = savedstates.load(env.home)
        wanted = states.current if guid is None else guid
        if not wanted and guid is None:
            raise SnapshotNotFound("No snapshot to revert to.")
        item = states.get(wanted)
        conf = machineshot.configuration(node, env, item.guid)
        machineshot.check(node, env, item.guid, conf)
        progress.stage(f"Switching to snapshot {item.guid}")
        progress.check()
        data = home.to_data(env) | {"guid": item.guid}
        ran = env.uuid in node.machines.running()
        with Journal.begin(node.paths, env.uuid, SWITCH, data):
            machineshot.end(node, env)
            machineshot.apply(node, env, states, item, conf)
        runs = item.state == POWERON and resume
        if runs:
            machineshot.load_memory(node, env, item.guid)
    word = {True: Status.RUNNING, False: Status.STOPPED}
    told = {"was": word[ran], "is": word[runs]}
    node.publish("ve-snapshot-switch", env, guid=item.guid, **told)
    node.publish("ve-config", env, fields="")
    return item.guid


def delete(
    node: Node,
    env: Environment,
    guid: str,
    *,
    children: bool = False,
    progress: Progress,
) -> None:
    """Forget a snapshot, with `children` all below it too; else those move up to its parent."""
    with backuplease.lease(node, env, "snapshot-delete"):
        machine.repair(node, env)
        states = savedstates.load(env.home)
        gone = states.subtree(guid) if children else (states.get(guid),)
        progress.stage(f"Deleting snapshot {states.get(guid).guid}")
        progress.check()
        left = states.without_subtree(guid) if children else states.without(guid)
        disks = machineshot.able(node.registry.config(env))
        # First the list: what it does not name is nobody's, and only costs room.
        savedstates.save(env.home, left)
        for item in gone:
            machineshot.discard(node, env, item.guid, disks)
    for item in gone:
        node.publish("ve-snapshot-delete", env, guid=item.guid)
