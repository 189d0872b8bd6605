"""Snapshots of a container: create, list, switch, delete, mount.

A snapshot keeps the disks and the configuration, and of a running container its memory.  What each
verb changes, and how it is repaired, is in shot.py; the tree is Snapshots.xml.

    <run>/snapshots/<uuid>/<guid>       where a snapshot is mounted (a hint: the mount is the truth)
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pyvz.errors import AlreadyMounted, BadValue, Busy, SnapshotNotFound, Unsupported
from pyvz.linux import mount
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import dump, ground, home, lifecycle, machinesnapshot, provision, shot, suspend
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store import savedstates
from pyvz.store.savedstates import SavedState

log = logging.getLogger(__name__)


class Taken(NamedTuple):
    """A new snapshot.  running: the container ran.  memory: its memory is in the snapshot."""

    guid: str
    running: bool
    memory: bool


class Wanted(NamedTuple):
    """What a snapshot is to be.  memory: with the memory of a container that runs."""

    guid: str | None = None
    name: str = ""
    description: str = ""
    memory: bool = True


class Row(NamedTuple):
    """One line of the list.  device, target: where it is mounted, or empty."""

    state: SavedState
    current: bool
    device: str
    target: str


def create(
    node: Node, ref: str, wanted: Wanted | None = None, *, progress: Progress | None = None
) -> Taken:
    """Keep the disks and the configuration as they are now, and the memory of what runs.

    Without its memory, which is so where it cannot be saved on this node at all: the file systems
    are frozen for a moment and what is on them is kept, as after a power cut.
    Raises AlreadyExists, BadValue, Busy (programs of exec run in it), CheckpointError,
    Unsupported, NoSpace, StorageError: nothing has changed then.
    """
    progress = progress or NoProgress()
    wanted = wanted or Wanted()
    env = node.registry.resolve(ref)
    item = savedstates.new_item(wanted.guid or str(uuid4()), wanted.name, wanted.description)
    if env.kind == Kind.VM:
        made = machinesnapshot.create(node, env, item, progress, memory=wanted.memory)
        return Taken(*made)
    with node.lease(env, "snapshot"):
        provision.repair(node, env)
        status = lifecycle.require(node, env, "snapshot")
        names = shot.disks(env)
        memory = wanted.memory and status == Status.RUNNING and _can_keep_memory(node, env)
        if memory:
            item = item._replace(state=savedstates.POWERON)
        progress.stage(f"Creating snapshot {item.guid}")
        progress.check()
        # Several disks are of one moment only when nothing writes to any of them meanwhile.
        halts = storage.find(env.home).capabilities(env.home).snapshot_halts
        still = (halts or len(names) > 1) and status == Status.RUNNING
        manner = shot.Manner(still=still and not memory, memory=memory)
        shot.take(node, env, savedstates.load(env.home), item, manner, progress)
    node.publish("ve-snapshot", env, guid=item.guid)
    return Taken(item.guid, status in {Status.RUNNING, Status.PAUSED}, memory)


def _can_keep_memory(node: Node, env: Environment) -> bool:
    """Whether this node can save the memory of a running container; raises Busy."""
    try:
        suspend.ready(node, env, node.registry.config(env))
    except Unsupported as error:
        log.warning("%s: the snapshot is without its memory: %s", env.name, error)
        return False
    suspend.foreign(node, env)
    return True


def describe(node: Node, ref: str, guid: str, texts: tuple[str, str]) -> None:
    """Give a snapshot another name and description; raises SnapshotNotFound, BadValue."""
    env = node.registry.resolve(ref)
    with node.lease(env, "snapshot"):
        savedstates.save(env.home, savedstates.load(env.home).described(guid, *texts))


def rows(node: Node, ref: str) -> list[Row]:
    """Return the snapshots, parents before children; takes no lease."""
    env = node.registry.resolve(ref)
    states = savedstates.load(env.home)
    found = []
    for item in states.items:
        target = _target(node, env, item.guid)
        entry = mount.mount_at(target) if target else None
        device = entry.source if entry is not None else ""
        place = target if entry is not None else ""
        found.append(Row(item, item.guid == states.current, device, place))
    return found


def switch(
    node: Node,
    ref: str,
    guid: str | None = None,
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> str:
    """Make the stopped container what it was at a snapshot (None: the current one).

    What is on its disks now is lost.  Where the snapshot has memory, the container goes on from
    there, or (not resume) is suspended.  Returns the snapshot's id.
    Raises SnapshotNotFound, AlreadyRunning, NoSpace, StorageError, and after the switch
    RestoreError: it is suspended then.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        return machinesnapshot.switch(node, env, guid, resume=resume, progress=progress)
    with node.lease(env, "snapshot-switch"):
        provision.repair(node, env)
        states = savedstates.load(env.home)
        wanted = states.current if guid is None else guid
        if not wanted and guid is None:
            raise SnapshotNotFound("No snapshot to revert to.")
        wanted = states.get(wanted).guid
        status = lifecycle.require(node, env, "snapshot-switch")
        progress.stage(f"Switching to snapshot {wanted}")
        progress.check()
        if status == Status.MOUNTED:
            ground.umount_root(node, env)
        shot.switch(node, env, states, wanted)
        if resume and dump.pending(env):
            dump.resume(node, env, dump.ResumeOptions(dump.default(env)), progress)
            node.publish("ve-resume", env, was="snapshot")
    node.publish("ve-snapshot-switch", env, guid=wanted)
    node.publish("ve-config", env, fields="")
    return wanted


def delete(
    node: Node, ref: str, guid: str, *, children: bool = False, progress: Progress | None = None
) -> None:
    """Forget a snapshot, with `children` all below it too; else those move up to its parent.

    Raises SnapshotNotFound, Busy (mounted), StorageError.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    if env.kind == Kind.VM:
        machinesnapshot.delete(node, env, guid, children=children, progress=progress)
        return
    with node.lease(env, "snapshot-delete"):
        provision.repair(node, env)
        states = savedstates.load(env.home)
        gone = states.subtree(guid) if children else (states.get(guid),)
        for item in gone:
            target = _target(node, env, item.guid)
            if target and mount.is_mount_point(target):
                raise Busy(
                    f"Snapshot {item.guid} is mounted at {target}",
                    hint=f"Unmount it first: vzctl snapshot-umount {env.name} --id {item.guid}",
                )
        progress.stage(f"Deleting snapshot {states.get(guid).guid}")
        progress.check()
        shot.discard(node, env, states, guid, below=children)
    for item in gone:
        node.publish("ve-snapshot-delete", env, guid=item.guid)


def mount_snapshot(node: Node, ref: str, guid: str, target: str) -> str:
    """Show the root disk of a snapshot read-only at the directory `target` of the node.

    Raises SnapshotNotFound, AlreadyMounted, BadValue, MountError.
    """
    env = node.registry.resolve(ref)
    place = _checked(node, target)
    with node.lease(env, "snapshot-mount"):
        provision.repair(node, env)
        guid = savedstates.load(env.home).get(guid).guid
        shot.disks(env)
        before = _target(node, env, guid)
        if before and mount.is_mount_point(before):
            raise AlreadyMounted(f"Snapshot {guid} is mounted at {before} already")
        record = _record(node, env, guid)
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.write_text(os.fspath(place), encoding="utf-8", errors="surrogateescape")
        try:
            with home.storage_errors(f"Snapshot {guid} could not be mounted"):
                storage.find(env.home).mount_snapshot(env.home, guid, place)
        except BaseException:
            _forget(record)
            raise
    return os.fspath(place)


def umount_snapshot(node: Node, ref: str, guid: str) -> None:
    """Unmount a snapshot; one that is not mounted is fine.  Raises SnapshotNotFound, Busy."""
    env = node.registry.resolve(ref)
    with node.lease(env, "snapshot-umount"):
        provision.repair(node, env)
        guid = savedstates.load(env.home).get(guid).guid
        target = _target(node, env, guid)
        if target:
            with home.storage_errors(f"Snapshot {guid} could not be unmounted"):
                storage.find(env.home).umount_snapshot(env.home, guid, Path(target))
        _forget(_record(node, env, guid))


def _checked(node: Node, target: str) -> Path:
    """Return where a snapshot may be mounted; raises BadValue for a container's own tree."""
    if not target.startswith("/"):
        raise BadValue(f"'{target}' is not an absolute path")
    place = Path(os.path.realpath(target))
    for other in (node.paths.ve_root, *(env.home for env in node.registry.environments())):
        if place.is_relative_to(os.path.realpath(other)):
            raise BadValue(f"A snapshot cannot be mounted at {target}: it lies in {other}")
    if place.exists() and not place.is_dir():
        raise BadValue(f"{target} is not a directory")
    return place


def _record(node: Node, env: Environment, guid: str) -> Path:
    return node.paths.run / "snapshots" / env.uuid / guid


def _target(node: Node, env: Environment, guid: str) -> str:
    """Return where the snapshot was mounted last, "" for nowhere."""
    try:
        return _record(node, env, guid).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _forget(record: Path) -> None:
    record.unlink(missing_ok=True)
    with suppress(OSError):
        record.parent.rmdir()
