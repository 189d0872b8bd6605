"""How a disk goes over into another layout: copied, compared, journalled.

    <home>/.convert/              the new disk, made by its driver as in a home of its own
    <vz>/root/.convert/<uuid>/    from, to: where both are mounted meanwhile

The copy is compared with the original, file by file, and written out.  It commits when the journal
says so: before, all that was made is removed; after, its parts are moved into the home and the old
disk is removed, also by whoever repairs.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from pyvz.errors import InvalidState, PrivateMissing, StorageError
from pyvz.linux import file, mount, treecompare
from pyvz.model.environment import Environment
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import home
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage.base import StorageDriver
from pyvz.store import savedstates
from pyvz.store.journal import Journal, Record
from pyvz.units import UNLIMITED

log = logging.getLogger(__name__)

VERB = "convert"
_STAGING = ".convert"
_COMMIT = "commit"


def repair(node: Node, record: Record) -> None:
    """Undo or finish a conversion that was killed, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: repairing an unfinished conversion", env.name)
    source = storage.load(str(record.data["from"]))
    if record.step(_COMMIT) is not None:
        _take_over(env, source)
    else:
        _abandon(node, env)
    Journal.forget(node.paths, record.uuid)


def check(env: Environment, source: StorageDriver) -> None:
    """Raise InvalidState when there is what the other layout could not take over."""
    if savedstates.load(env.home).items:
        raise InvalidState(
            f"{env.name} has snapshots, which another layout cannot take over",
            hint=f"Delete them first: prlctl snapshot-list {env.name}",
        )
    if source.capabilities(env.home).disks:
        names = storage.many_disks(source, env.home).disks(env.home)
        if len(names) > 1:
            raise InvalidState(
                f"{env.name} has more than one disk: {', '.join(names)}",
                hint="Convert containers with one disk only.",
            )


def change(
    node: Node, env: Environment, drivers: tuple[StorageDriver, StorageDriver], progress: Progress
) -> int:
    """Copy the disk from the first driver's layout into the second's; returns how many files.

    The caller holds the lease; the container is stopped.  Raises NoSpace, StorageError, Cancelled:
    nothing has changed then.
    """
    source, _ = drivers
    data = home.to_data(env) | {"from": source.name}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal:
        try:
            with home.storage_errors(f"The disk of {env.name} could not be converted"):
                files = _copied(node, env, drivers, progress)
                progress.check()
                journal.note(_COMMIT)
        except BaseException:
            _abandon(node, env)
            journal.done()
            raise
        with home.storage_errors(f"The conversion of {env.name} is not finished"):
            _take_over(env, source)
    return files


def _copied(
    node: Node, env: Environment, drivers: tuple[StorageDriver, StorageDriver], progress: Progress
) -> int:
    """Make the new disk beside the old one, and compare; returns the number of files."""
    source, target = drivers
    staging = env.home / _STAGING
    staging.mkdir(mode=0o700)
    progress.stage(f"Creating a disk of layout {target.name}")
    target.create(staging, size=_size(node, env, target), source=None, progress=progress)
    old, new = (_places(node, env) / name for name in ("from", "to"))
    source.mount(env.home, old, readonly=True)
    target.mount(staging, new)
    progress.stage("Copying")
    file.copy_tree(old, new, progress)
    target.umount(staging, new)
    target.mount(staging, new, readonly=True)
    progress.stage("Comparing")
    found = treecompare.compare(old, new, progress)
    if found.difference:
        raise StorageError("The copy differs from the original", details=found.difference)
    _umount(node, env)
    return found.files


def _size(node: Node, env: Environment, target: StorageDriver) -> int | None:
    space = node.registry.config(env).disk.space
    if not target.capabilities(env.home).quota or space is None or space.limit >= UNLIMITED:
        return None
    return space.limit * 1024


def _take_over(env: Environment, source: StorageDriver) -> None:
    """Move the parts of the new disk into the home, and remove the old disk; repeatable."""
    staging = env.home / _STAGING
    if staging.is_dir():
        for entry in sorted(os.scandir(staging), key=lambda entry: entry.name):
            Path(entry.path).rename(env.home / entry.name)
        file.fsync_directory(env.home)
        staging.rmdir()
    source.remove(env.home, NoProgress())


def _abandon(node: Node, env: Environment) -> None:
    _umount(node, env)
    home.dismantle(env.home / _STAGING, NoProgress())


def _places(node: Node, env: Environment) -> Path:
    return node.paths.ve_root / _STAGING / env.uuid


def _umount(node: Node, env: Environment) -> None:
    """Unmount both disks, by their drivers; not mounted is fine."""
    top = _places(node, env)
    for place, directory in ((top / "to", env.home / _STAGING), (top / "from", env.home)):
        if mount.is_mount_point(place):
            try:
                driver: StorageDriver | None = storage.find(directory)
            except PrivateMissing:
                driver = None
            if driver is None:
                mount.umount(place)
            else:
                driver.umount(directory, place)
        with suppress(OSError):
            place.rmdir()
    for directory in (top, top.parent):
        with suppress(OSError):
            directory.rmdir()
