"""How the disks of a container go over into another layout: copied, compared, journalled.

    <home>/.convert/              the new disks, made by their driver as in a home of their own
    <vz>/root/.convert/<uuid>/    from.<disk>, to.<disk>: where both are mounted meanwhile

Each copy is compared with the original, file by file, and written out.  All commit when the journal
says so: before, what was made is removed; after, the old disks are removed and the new ones, which
may have their names, are moved into the home, also by whoever repairs.
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


def check(env: Environment, source: StorageDriver, target: StorageDriver) -> None:
    """Raise InvalidState when there is what the other layout could not take over."""
    if savedstates.load(env.home).items:
        raise InvalidState(
            f"{env.name} has snapshots, which another layout cannot take over",
            hint=f"Delete them first: prlctl snapshot-list {env.name}",
        )
    names = _names(env, source)
    if len(names) > 1 and not target.capabilities(env.home).disks:
        raise InvalidState(
            f"{env.name} has more than one disk: {', '.join(names)}",
            hint=f"A container of layout {target.name} has one. Remove the others: prlctl set CT "
            "--device-del hddN --destroy-image; what is only detached, attach for that first "
            "(--device-add hdd --image NAME.hdd).",
        )


def _names(env: Environment, driver: StorageDriver) -> list[str]:
    """Return the disks of a home, the root disk first."""
    if not driver.capabilities(env.home).disks:
        return [storage.ROOT_DISK]
    return storage.many_disks(driver, env.home).disks(env.home)


def change(
    node: Node, env: Environment, drivers: tuple[StorageDriver, StorageDriver], progress: Progress
) -> int:
    """Copy the disks from the first driver's layout into the second's; returns how many files.

    The caller holds the lease; the container is stopped.  Raises NoSpace, StorageError, Cancelled:
    nothing has changed then.
    """
    source, _ = drivers
    data = home.to_data(env) | {"from": source.name}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal:
        try:
            with home.storage_errors(f"The disks of {env.name} could not be converted"):
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
    """Make the new disks beside the old ones, and compare; returns the number of files."""
    (env.home / _STAGING).mkdir(mode=0o700)
    files = _copy_root(node, env, drivers, progress)
    for name in _names(env, drivers[0])[1:]:
        old, new = (storage.many_disks(each, env.home) for each in drivers)
        files += _copy_data(node, env, (old, new, name), progress)
    return files


def _copy_root(
    node: Node, env: Environment, drivers: tuple[StorageDriver, StorageDriver], progress: Progress
) -> int:
    source, target = drivers
    staging = env.home / _STAGING
    progress.stage(f"Creating a disk of layout {target.name}")
    target.create(staging, size=_size(node, env, target), source=None, progress=progress)
    old, new = _pair(node, env, storage.ROOT_DISK)
    source.mount(env.home, old, readonly=True)
    target.mount(staging, new)
    _fill(old, new, progress)
    target.umount(staging, new)
    target.mount(staging, new, readonly=True)
    return _compared(node, env, (old, new), progress)


def _copy_data(
    node: Node,
    env: Environment,
    what: tuple[storage.ManyDisks, storage.ManyDisks, str],
    progress: Progress,
) -> int:
    source, target, name = what
    staging = env.home / _STAGING
    progress.stage(f"Creating {name}")
    size = source.size(env.home, disk=name)
    target.create(staging, size=size, source=None, progress=progress, disk=name)
    old, new = _pair(node, env, name)
    source.mount(env.home, old, readonly=True, disk=name)
    target.mount(staging, new, disk=name)
    _fill(old, new, progress)
    target.umount(staging, new, disk=name)
    target.mount(staging, new, readonly=True, disk=name)
    return _compared(node, env, (old, new), progress)


def _fill(old: Path, new: Path, progress: Progress) -> None:
    progress.stage("Copying")
    file.copy_tree(old, new, progress)


def _compared(node: Node, env: Environment, pair: tuple[Path, Path], progress: Progress) -> int:
    """Compare both mounts and take them away; returns the number of files."""
    progress.stage("Comparing")
    found = treecompare.compare(*pair, progress)
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
    """Remove the old disks, and move the parts of the new ones into the home; repeatable."""
    staging = env.home / _STAGING
    source.remove(env.home, NoProgress())
    if staging.is_dir():
        for entry in sorted(os.scandir(staging), key=lambda entry: entry.name):
            Path(entry.path).rename(env.home / entry.name)
        file.fsync_directory(env.home)
        staging.rmdir()


def _abandon(node: Node, env: Environment) -> None:
    _umount(node, env)
    home.dismantle(env.home / _STAGING, NoProgress())


def _pair(node: Node, env: Environment, disk: str) -> tuple[Path, Path]:
    """Return where the old and the new disk are mounted."""
    top = _places(node, env)
    return top / f"from.{disk}", top / f"to.{disk}"


def _places(node: Node, env: Environment) -> Path:
    return node.paths.ve_root / _STAGING / env.uuid


def _umount(node: Node, env: Environment) -> None:
    """Unmount all disks, by their drivers; not mounted is fine."""
    top = _places(node, env)
    for place in sorted(top.iterdir(), reverse=True) if top.is_dir() else ():
        side, _, disk = place.name.partition(".")
        if mount.is_mount_point(place):
            _umount_one(env.home / _STAGING if side == "to" else env.home, place, disk)
        with suppress(OSError):
            place.rmdir()
    for directory in (top, top.parent):
        with suppress(OSError):
            directory.rmdir()


def _umount_one(directory: Path, place: Path, disk: str) -> None:
    try:
        driver = storage.find(directory)
    except PrivateMissing:
        mount.umount(place)
        return
    if driver.capabilities(directory).disks:
        storage.many_disks(driver, directory).umount(directory, place, disk=disk)
    else:
        driver.umount(directory, place)
