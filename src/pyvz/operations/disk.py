"""The disks of a container in `set`: --device-add hdd, --device-set hddN, --device-del hddN.

hdd0 is the root disk; the others are entries of DISK.  A new image is made before ve.conf names
it, and one is removed after ve.conf has forgotten it; the journal record lets a death between be
repaired.  In a running container a disk appears, moves and disappears at once.
The caller holds the lease.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    Busy,
    DiskNotFound,
    FileMissing,
    InvalidState,
    Unsupported,
    UsageError,
)
from pyvz.linux import mount
from pyvz.model import params
from pyvz.model.config import Config
from pyvz.model.environment import Environment, canonical_uuid
from pyvz.model.grammar import Pair
from pyvz.model.grammar_disk import DiskEntry
from pyvz.model.param import normal
from pyvz.model.task import Progress
from pyvz.operations import diskmount, home
from pyvz.operations.diskmount import DataDisk
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record
from pyvz.units import UNLIMITED

log = logging.getLogger(__name__)

ADD, DELETE = "device-add", "device-del"
VERBS = frozenset({ADD, DELETE})  # whose journal records `repair` understands
DEFAULT_SIZE = 64 << 20  # KiB: prlctl's default of 64 GiB, of which only what is used is taken
_DEVICE_VERBS = ("device-add", "device-set", "device-del")


class DiskChange(NamedTuple):
    """What is asked for.  verb: "add", "set" or "del".  name: "hdd1", or a disk's UUID.

    merges: options of DISK with their texts.  flags: the other ones ("recreate", ...).
    """

    verb: str
    name: str
    dialect: str
    merges: tuple[tuple[str, str], ...] = ()
    flags: frozenset[str] = frozenset()


class Changed(NamedTuple):
    """The configuration with the change in it, and what is told of it."""

    config: Config
    echo: tuple[str, ...] = ()


def split(dialect: str, given: GivenOptions) -> tuple[GivenOptions, DiskChange | None]:
    """Take what is about one disk out of the options of a call; raises UsageError, BadValue."""
    about = [(normal(name), text or "") for name, text in given if normal(name) in _DEVICE_VERBS]
    disks = [(verb, name) for verb, name in about if _is_disk(verb, name)]
    if not disks:
        return given, None
    if len(about) > 1:
        raise UsageError("Only one device can be added, changed or removed by one call")
    (verb, name) = disks[0]
    rest, merges, flags = [], [], set()
    for option, text in given:
        row, found = params.by_option(dialect, option, "disk")
        if normal(option) == verb:
            continue
        if found.scope != "disk":
            rest.append((option, text))
        elif found.ignored:
            log.info("--%s: %s", found.name, found.ignored)
        elif row is None:
            flags.add(found.name)
        else:
            merges.append((found.name, text or ""))
    change = DiskChange(verb.rpartition("-")[2], name, dialect, tuple(merges), frozenset(flags))
    return rest, change


def _is_disk(verb: str, name: str) -> bool:
    return (
        name == "hdd" if verb == ADD else name.startswith("hdd") or canonical_uuid(name) is not None
    )


@contextmanager
def changing(
    node: Node, env: Environment, config: Config, change: DiskChange | None, progress: Progress
) -> Iterator[Changed]:
    """Do what `change` asks for; the block saves the configuration that it is given.

    When the block fails, all is as it was before (but a disk that grew stays grown).
    Raises UsageError, BadValue, DiskNotFound, AlreadyExists, Unsupported, NoSpace, Busy, ...
    """
    if change is None:
        yield Changed(config)
    elif change.verb == "add":
        with _adding(node, env, config, change, progress) as changed:
            yield changed
    elif change.verb == "del":
        with _deleting(node, env, config, change) as changed:
            yield changed
    elif change.name == diskmount.ROOT:
        yield _set_root(config, change)
    else:
        with _setting(node, env, config, change) as changed:
            yield changed


def resize_root(env: Environment, old: Config, new: Config) -> None:
    """Make the root disk as large as DISKSPACE says when that has changed; or without a size.

    Raises Unsupported, BadValue, InvalidState, NoSpace.
    """
    space = new.disk.space
    if space == old.disk.space or space is None:
        return
    driver = storage.find(env.home)
    with home.storage_errors(f"The disk of {env.name} could not be resized"):
        if space.limit >= UNLIMITED:
            driver.unlimit(env.home)
        else:
            driver.resize(env.home, space.limit * 1024)


def repair(node: Node, record: Record) -> None:
    """Remove the image that a killed change left and that ve.conf does not name; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: repairing an unfinished %s", env.name, record.verb)
    entry = DiskEntry(uuid=str(record.data["uuid"]), image=str(record.data["image"]))
    known = {each.uuid for each in node.registry.config(env).disk.disks}
    if entry.uuid not in known:
        disk = diskmount.located(env, str(record.data["name"]), entry)
        diskmount.umount_one(node, env, disk)
        if record.data.get("remove"):
            _remove_image(env, disk)
    Journal.forget(node.paths, record.uuid)


def find(env: Environment, config: Config, name: str) -> DataDisk:
    """Return the data disk of that name or UUID; raises DiskNotFound."""
    uuid = canonical_uuid(name)
    for disk in diskmount.disks_of(env, config):
        if disk.name == name or (uuid is not None and disk.entry.uuid == uuid):
            return disk
    raise DiskNotFound(f"{env.name} has no disk '{name}'")


# -- add


@contextmanager
def _adding(
    node: Node, env: Environment, config: Config, change: DiskChange, progress: Progress
) -> Iterator[Changed]:
    disk = _new(env, config, change)
    driver = storage.many_disks(storage.find(env.home), env.home)
    there = disk.disk in driver.disks(disk.home)
    recreate = "recreate" in change.flags
    if there and recreate:
        raise AlreadyExists(
            f"{disk.path} exists already: it is not overwritten", hint="Remove it first."
        )
    if not there and disk.path.exists():
        raise AlreadyExists(f"{disk.path} exists and is no disk")
    if not there and not disk.home.is_dir():
        raise FileMissing(f"There is no directory {disk.home}")
    data = _data(env, disk) | {"remove": not there}
    with Journal.begin(node.paths, env.uuid, ADD, data) as journal, ExitStack() as undo:
        undo.callback(journal.done)
        with home.storage_errors(f"The disk {disk.name} could not be made"):
            if not there:
                progress.stage(f"Creating {disk.name}")
                undo.callback(_remove_image, env, disk)
                size = (disk.entry.size or DEFAULT_SIZE) * 1024
                driver.create(disk.home, size=size, source=None, progress=progress, disk=disk.disk)
            elif disk.entry.size:
                driver.resize(disk.home, disk.entry.size * 1024, disk=disk.disk)
            disk = _sized(env, disk)
            _bring_in(node, env, disk, undo)
        echo = f"Creating {disk.name} {_told(disk)}"
        yield Changed(_with(config, (*config.disk.disks, disk.entry)), (echo,))
        undo.pop_all()


def _new(env: Environment, config: Config, change: DiskChange) -> DataDisk:
    """Return the disk that is to be added; raises BadValue, AlreadyExists."""
    taken = diskmount.named(config.disk.disks)
    name = diskmount.free_name(taken)
    while (env.home / f"{name}.hdd").exists() and not any(
        key == "image" for key, _ in change.merges
    ):
        # A disk that was only detached keeps its image and its name.
        taken[name] = DiskEntry()
        name = diskmount.free_name(taken)
    entry = _merged(DiskEntry(uuid=str(uuid4())), change)
    _check(entry)
    image = _image(env, entry.image or f"{name}.hdd")
    disk = diskmount.located(env, name, entry._replace(image=image))
    for other in diskmount.disks_of(env, config):
        if other.path == disk.path:
            raise AlreadyExists(f"{disk.path} is disk {other.name} already")
        if entry.mnt and other.entry.mnt.rstrip("/") == entry.mnt.rstrip("/"):
            raise AlreadyExists(f"{other.name} is mounted at {entry.mnt} already")
        if other.entry.uuid == entry.uuid:
            raise AlreadyExists(f"{other.name} has the UUID {entry.uuid} already")
    return disk


def _image(env: Environment, text: str) -> str:
    """Return an image's path as DISK spells it: relative in the home, else absolute."""
    path = Path(os.path.normpath(env.home / text))
    if path.parent == env.home:
        if path.name == storage.ROOT_DISK or not path.name.endswith(".hdd"):
            raise BadValue(f"'{text}' cannot be a disk's image", hint="Its name ends with .hdd.")
        return path.name
    if not text.startswith("/") or path.is_relative_to(env.home):
        raise BadValue(f"'{text}' is neither in the container's home nor an absolute path")
    return os.fspath(path)


def _check(entry: DiskEntry) -> None:
    if entry.device:
        raise Unsupported(
            "Block devices of the node cannot be attached by this version",
            hint="Use --image, or --bindmount_add for a file system that the node mounts.",
        )
    if entry.storage_url:
        raise Unsupported("Storage URLs are not supported")
    if entry.mnt:
        parts = entry.mnt.split("/")
        if not entry.mnt.startswith("/") or ".." in parts or not entry.mnt.strip("/"):
            raise BadValue(f"--mnt: '{entry.mnt}' is not an absolute path below /")


def _sized(env: Environment, disk: DataDisk) -> DataDisk:
    """Return the disk with the size that it really has."""
    driver = storage.many_disks(storage.find(env.home), env.home)
    size = driver.size(disk.home, disk=disk.disk)
    return disk._replace(entry=disk.entry._replace(size=size // 1024))


def _bring_in(node: Node, env: Environment, disk: DataDisk, undo: ExitStack) -> None:
    """Attach a disk where the container's root is mounted now."""
    if not disk.entry.enabled or not mount.is_mount_point(node.root(env)):
        return
    diskmount.attach(node, env, disk)
    undo.callback(diskmount.detach, node, env, disk)


# -- set


def _set_root(config: Config, change: DiskChange) -> Changed:
    """Change the root disk: its size, and whether it is compacted."""
    entry = _merged(DiskEntry(), change)
    known = {"size", "autocompact"}
    if other := {name for name, _ in change.merges} - known:
        raise UsageError(f"--{sorted(other)[0]} cannot be set for the root disk")
    changes: dict[str, Any] = {}
    if entry.size:
        changes["disk.space"] = Pair(entry.size, entry.size)
    if entry.autocompact is not None:
        changes["disk.autocompact"] = entry.autocompact
    return Changed(config.changed(changes), (f"set {change.name}",))


@contextmanager
def _setting(node: Node, env: Environment, config: Config, change: DiskChange) -> Iterator[Changed]:
    disk = find(env, config, change.name)
    entry = _merged(disk.entry, change)
    _check(entry)
    if entry.image != disk.entry.image:
        entry = entry._replace(image=_image(env, entry.image))
    new = diskmount.located(env, disk.name, entry)
    mounted = mount.is_mount_point(diskmount.place(node, env, disk))
    moved = (entry.mnt, entry.image) != (disk.entry.mnt, disk.entry.image)
    with ExitStack() as undo:
        if entry.size != disk.entry.size:
            _resize(env, new, entry.size)
            new = _sized(env, new)
        if mounted and (moved or not entry.enabled):
            diskmount.detach(node, env, disk)
            undo.callback(diskmount.attach, node, env, disk)
            mounted = False
        if not mounted:
            _bring_in(node, env, new, undo)
        entries = tuple(new.entry if x == disk.entry else x for x in config.disk.disks)
        yield Changed(_with(config, entries), (f"set {disk.name}",))
        undo.pop_all()


def _resize(env: Environment, disk: DataDisk, size: int) -> None:
    driver = storage.many_disks(storage.find(env.home), env.home)
    with home.storage_errors(f"The disk {disk.name} could not be resized"):
        driver.resize(disk.home, size * 1024, disk=disk.disk)


# -- del


@contextmanager
def _deleting(
    node: Node, env: Environment, config: Config, change: DiskChange
) -> Iterator[Changed]:
    if change.name == diskmount.ROOT:
        raise UsageError("The root disk cannot be removed", hint="Delete the container instead.")
    disk = find(env, config, change.name)
    destroy = _destroys(change)
    if destroy and disk.path.exists():
        _check_expendable(env, disk, force="destroy-image-force" in change.flags)
    data = _data(env, disk) | {"remove": destroy}
    with Journal.begin(node.paths, env.uuid, DELETE, data) as journal, ExitStack() as undo:
        undo.callback(journal.done)
        if mount.is_mount_point(diskmount.place(node, env, disk)):
            diskmount.detach(node, env, disk)
            undo.callback(diskmount.attach, node, env, disk)
        entries = tuple(x for x in config.disk.disks if x != disk.entry)
        echo = f"Remove the {disk.name} device."
        yield Changed(_with(config, entries), (echo,))
        undo.pop_all()
        if destroy:
            with home.storage_errors(f"The image {disk.path} could not be removed"):
                _remove_image(env, disk)


def _destroys(change: DiskChange) -> bool:
    """Whether the image goes too: by default with vzctl, only when asked to with prlctl."""
    asked = bool(change.flags & {"destroy-image", "destroy-image-force"})
    if asked and "detach-only" in change.flags:
        raise UsageError("--detach-only and --destroy-image cannot be given together")
    return asked or (change.dialect == "vzctl" and "detach-only" not in change.flags)


def _check_expendable(env: Environment, disk: DataDisk, *, force: bool) -> None:
    """Raise InvalidState when snapshots would lose a part."""
    driver = storage.many_disks(storage.find(env.home), env.home)
    there = disk.disk in driver.disks(disk.home)
    if there and not force and driver.snapshots(disk.home, disk=disk.disk):
        raise InvalidState(
            f"The disk {disk.name} is part of snapshots",
            hint="Delete the snapshots, or use --destroy-image-force, or --detach-only.",
        )


def _remove_image(env: Environment, disk: DataDisk) -> None:
    """Remove a disk with its image; none there is fine.  Raises Busy."""
    driver = storage.many_disks(storage.find(env.home), env.home)
    if disk.disk in driver.disks(disk.home):
        if mount.mounts(os.path.realpath(disk.path)):
            raise Busy(f"{disk.path} is in use")
        driver.remove_disk(disk.home, disk.disk)


# -- values


def _merged(entry: DiskEntry, change: DiskChange) -> DiskEntry:
    for name, text in change.merges:
        _, option = params.by_option(change.dialect, name, "disk")
        if option.metavar and not text:
            raise BadValue(f"--{option.name} needs a value: {option.metavar}")
        entry = option.value(None, entry, text)
    return entry


def _with(config: Config, entries: tuple[DiskEntry, ...]) -> Config:
    return config.changed({"disk.disks": entries or None})


def _data(env: Environment, disk: DataDisk) -> dict[str, object]:
    of_disk = {"name": disk.name, "uuid": disk.entry.uuid, "image": disk.entry.image}
    return home.to_data(env) | of_disk


def _told(disk: DataDisk) -> str:
    """Return a disk as `prlctl list -i` shows it (PrlDev.cpp, append_info_spec)."""
    mnt = f" mnt={disk.entry.mnt}" if disk.entry.mnt else ""
    sign = "+" if disk.entry.enabled else "-"
    size = f"{disk.entry.size // 1024}Mb"
    return f"({sign}) scsi:{disk.name[3:]} image='{disk.path}' type='expanded' {size}{mnt}"
