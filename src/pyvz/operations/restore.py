"""Bring back what was backed up: in place, as a new environment, or only to look into it.

A new environment is born as any other (operations/home.py).  In place, the environment is as it
was until the home that takes its place is whole (operations/succession.py).
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pyvz.backup import content, image
from pyvz.backup.manifest import IMAGE, Disk, Manifest, parse_id, shown
from pyvz.backup.repository import Repository
from pyvz.backup.treerestore import Restore
from pyvz.errors import (
    AlreadyExists,
    BackupDamaged,
    BadValue,
    EnvironmentNotFound,
    NotMounted,
    PrivateMissing,
    UsageError,
)
from pyvz.linux import file, mount
from pyvz.model import params_net as params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind, check_name
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    backup,
    backuplease,
    backupstorage,
    clone,
    home,
    lifecycle,
    machinebackup,
    machinecreate,
    machinemount,
    machineoffer,
    pool,
    provision,
    succession,
)
from pyvz.operations.backupstorage import Where
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """What to restore, and as what.

    ref: the newest backup of this environment; tag: this backup.  name: of a new environment (None:
    the one that was backed up).  destination: directory of its private area.
    """

    ref: str | None = None
    tag: str | None = None
    name: str | None = None
    destination: str | None = None
    where: Where = Where()


def restore(node: Node, wanted: Wanted, progress: Progress | None = None) -> Environment:
    """Restore an environment; returns what it is.

    Raises BackupNotFound, BackupDamaged, AlreadyRunning, AlreadyMounted (in place: it has to be
    stopped), AlreadyExists, NoSpace, Cancelled: everything is then as it was.
    """
    progress = progress or NoProgress()
    opening = backupstorage.opened(node, wanted.where, progress)
    with opening as repository, repository.shared():
        manifest = chosen(node, repository, wanted.ref, wanted.tag)
        if wanted.name is None:
            try:
                present = node.registry.resolve(manifest.uuid)
            except EnvironmentNotFound:
                env = _former(node, manifest, wanted)
            else:
                if wanted.destination is not None:
                    raise BadValue(
                        f"{present.name} is restored where it is: --dst needs a new --name"
                    )
                _in_place(node, present, (repository, manifest), progress)
                return present
        else:
            env = _another(node, manifest, wanted)
        _as_new(node, env, (repository, manifest), progress)
    return env


def chosen(node: Node, repository: Repository, ref: str | None, tag: str | None) -> Manifest:
    """Return the backup that is meant; raises BackupNotFound, UsageError."""
    if tag is not None:
        return repository.find(parse_id(tag))
    if ref is None:
        raise UsageError("Neither an environment nor a backup is named")
    return backup.latest(node, repository, ref)


def _former(node: Node, manifest: Manifest, wanted: Wanted) -> Environment:
    """Return who the environment was that is gone now."""
    private = _private(wanted) or manifest.home
    place = provision.place(node, private, manifest.uuid)
    return Environment(
        manifest.uuid, manifest.envid, check_name(manifest.name), Kind(manifest.kind), place
    )


def _another(node: Node, manifest: Manifest, wanted: Wanted) -> Environment:
    """Return a new environment with the name that was asked for."""
    uuid = str(uuid4())
    kind = Kind(manifest.kind)
    private = _private(wanted)
    if private is None and kind == Kind.VM:
        private = home.spelled(node, machinecreate.parent_of(node)) + "/$VEID"
    if private is None:
        driver = manifest.disks[0].driver if manifest.disks else ""
        private = pool.private_for(node, driver)
    name = check_name(wanted.name or "")
    return Environment(uuid, uuid, name, kind, provision.place(node, private, uuid))


def _private(wanted: Wanted) -> str | None:
    return f"{wanted.destination.rstrip('/')}/$VEID" if wanted.destination else None


def _as_new(
    node: Node, env: Environment, what: tuple[Repository, Manifest], progress: Progress
) -> None:
    repository, manifest = what
    with ExitStack() as held:
        held.enter_context(home.reserved(node, env.uuid, env.envid, env.name))
        held.enter_context(backuplease.alone_with(node, env.uuid))
        held.enter_context(node.lease(env, "restore"))
        home.check_place(node, env.home)
        conf = _configuration(node, env, manifest)
        with home.born(node, env, conf, "create") as staging:
            # Where `home.abandon` finds it, should we be killed meanwhile.
            fill(repository, manifest, staging, node.root(env), progress)
            _furnish(node, staging, manifest)
            progress.check()
    node.publish("ve-restore", env, backup=manifest.tag)


def _in_place(
    node: Node, env: Environment, what: tuple[Repository, Manifest], progress: Progress
) -> None:
    repository, manifest = what
    with backuplease.alone_with(node, env.uuid), node.lease(env, "restore"):
        provision.repair(node, env)
        lifecycle.require(node, env, "restore")
        storage.check_unmounted(env.home)
        conf = _configuration(node, env, manifest)
        with succession.succeeding(node, env) as staging:
            fill(repository, manifest, staging, node.root(env), progress)
            _furnish(node, staging, manifest)
            file.write_atomic(staging / env.kind.conf_name, conf.render())
            progress.check()
    node.publish("ve-restore", env, backup=manifest.tag)


def fill(
    repository: Repository, manifest: Manifest, directory: Path, root: Path, progress: Progress
) -> None:
    """Make the disks of a backup in the home `directory`.

    root: where a tree is mounted while it is written.  Raises BackupDamaged, NoSpace, Unsupported.
    """
    for disk in manifest.disks:
        progress.stage(f"Restoring {disk.name}")
        if manifest.kind == Kind.VM:
            with content.damage(manifest, disk):
                _fill_machine(manifest, disk, (repository, directory), progress)
            continue
        driver = storage.load(disk.driver)
        with content.damage(manifest, disk):
            if disk.form == IMAGE:
                _fill_image(driver, disk, (repository, directory), progress)
            else:
                _fill_tree(driver, disk, (repository, directory, root), progress)


def _fill_machine(
    manifest: Manifest, disk: Disk, where: tuple[Repository, Path], progress: Progress
) -> None:
    repository, directory = where
    names = {each.name: each.image for each in _drives(manifest)}
    index = content.index_of(disk, repository.chunks)
    target = machinebackup.target_of(directory, disk, names.get(disk.name))
    machinebackup.fill(disk, index, target, repository.chunks, progress)


def _drives(manifest: Manifest) -> tuple[Drive, ...]:
    """Return the drives of a virtual machine that was backed up, as they are given back."""
    config = Config.parse(_conf_of(manifest).values(), lenient=True)
    return machinebackup.drives_of(manifest, config.machine.drives)


def _fill_image(
    driver: storage.StorageDriver,
    disk: Disk,
    where: tuple[Repository, Path],
    progress: Progress,
) -> None:
    repository, directory = where
    index = content.index_of(disk, repository.chunks)
    driver.restore_image(
        directory,
        disk.size,
        lambda fd, offset: image.restore(index, fd, offset, repository.chunks, progress),
        disk=disk.name,
    )


def _fill_tree(
    driver: storage.StorageDriver,
    disk: Disk,
    where: tuple[Repository, Path, Path],
    progress: Progress,
) -> None:
    repository, directory, root = where
    driver.create(directory, size=disk.limit, source=None, progress=progress)
    driver.mount(directory, root)
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _empty(root)
            work = Restore(fd, repository.chunks, progress, total=disk.size)
            work.run(content.catalog_of(disk, repository.chunks))
        finally:
            os.close(fd)
    finally:
        driver.umount(directory, root)


def _empty(root: Path) -> None:
    """Remove what a new file system has of its own (lost+found)."""
    for entry in list(root.iterdir()):
        file.remove_tree(entry)


def _furnish(node: Node, directory: Path, manifest: Manifest) -> None:
    """Make what a home has beside its disks: owner mark, scripts, records of templates."""
    if manifest.kind == Kind.VM:
        machinecreate.furnish(node, directory)
    else:
        provision.furnish(node, directory)
    for each in manifest.files:
        if each.path == Kind(manifest.kind).conf_name:
            continue
        path = directory / each.path
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        file.write_atomic(path, each.text, each.mode)


def _configuration(node: Node, env: Environment, manifest: Manifest) -> ConfFile:
    """Return the configuration that was backed up, with the identity of `env`.

    A second environment gets network addresses of its own on the link level; the IP addresses stay,
    for the administrator to change.
    """
    conf = _conf_of(manifest)
    source = f"{env.kind.conf_name} of the backup {manifest.tag}"
    old = Config.parse(conf.values(), source=source)
    if env.kind == Kind.VM:
        return _machine_configuration(node, env, manifest, conf)
    values: dict[str, str | None] = {
        "VEID": env.envid,
        "UUID": env.uuid,
        "NAME": env.name,
        "VE_PRIVATE": home.private_of(node, env),
    }
    if env.uuid != manifest.uuid:
        values["VE_ROOT"] = node.config().ve_root
        fresh = tuple(clone.fresh_interface(each) for each in old.network.interfaces)
        values |= old.changed({params.NETIF.field: fresh}).differences(old)
    for key, value in values.items():
        conf.set(key, value)
    return conf


def _conf_of(manifest: Manifest) -> ConfFile:
    """Return the configuration as it was backed up; raises BackupDamaged."""
    name = Kind(manifest.kind).conf_name
    found = manifest.file(name)
    if found is None:
        raise BackupDamaged(f"The backup {manifest.tag} has no {name}")
    return ConfFile.parse(found.text)


def _machine_configuration(
    node: Node, env: Environment, manifest: Manifest, conf: ConfFile
) -> ConfFile:
    old = Config.parse(conf.values())
    new = old.changed({"machine.drives": _drives(manifest)})
    for key, value in new.differences(old).items():
        conf.set(key, value)
    if env.uuid != manifest.uuid:
        machineoffer.give_new_cards(node, env, conf)
    values = {"VEID": env.envid, "UUID": env.uuid, "NAME": env.name}
    for key, value in (values | {"VE_PRIVATE": os.fspath(env.home)}).items():
        conf.set(key, value)
    return conf


# Looking into a backup


class Shown(NamedTuple):
    """A backup that is mounted: its files are below `target`, read-only."""

    tag: str
    target: Path


def show(
    node: Node,
    tag: str,
    target: str | None = None,
    *,
    where: Where = Where(),  # noqa: B008  a value
    progress: Progress | None = None,
) -> Shown:
    """Mount the root disk of a backup read-only; returns where.  `hide` takes it away again.

    The data is brought into a sparse image (or a directory) below <vz>/tmp first.
    Raises AlreadyExists (it is mounted already), BackupNotFound, BackupDamaged, NoSpace.
    """
    progress = progress or NoProgress()
    opening = backupstorage.opened(node, where, progress)
    with opening as repository, repository.shared():
        manifest = repository.find(parse_id(tag))
        place = _scratch(node, manifest.id)
        with backuplease.alone_with(node, manifest.id):
            if mounted := _mounted_at(place):
                raise AlreadyExists(f"The backup {manifest.tag} is mounted already, at {mounted}")
            _hide(place)
            goal = Path(target) if target is not None else place / "root"
            try:
                with home.storage_errors(f"The backup {manifest.tag} could not be mounted"):
                    (place / "home").mkdir(mode=0o700, parents=True)
                    root = _only_root(manifest)
                    fill(repository, root, place / "home", place / "root", progress)
                    progress.check()
                    goal.mkdir(mode=0o700, parents=True, exist_ok=True)
                    (place / "target").symlink_to(goal)
                    if manifest.kind == Kind.VM:
                        machinemount.mount_image(_image_in(place), goal, manifest.name)
                    else:
                        driver = storage.find(place / "home")
                        driver.mount(place / "home", goal, readonly=True)
            except BaseException:
                _hide(place)
                raise
    return Shown(manifest.tag, goal)


def _only_root(manifest: Manifest) -> Manifest:
    """Return the backup with nothing but its first disk; that of a machine as a raw image."""
    disks = manifest.disks[:1]
    if manifest.kind == Kind.VM:
        disks = tuple(machinebackup.raw(manifest, each) for each in disks)
    return replace(manifest, disks=disks)


def _image_in(place: Path) -> Path:
    """Return the one image of a virtual machine that was brought out of its backup."""
    return next(path for path in sorted((place / "home").iterdir()) if path.is_file())


def hide(node: Node, tag: str) -> None:
    """Unmount a backup and remove what was brought out of it; raises Busy, NotMounted."""
    ident = parse_id(tag)
    place = _scratch(node, ident)
    with backuplease.alone_with(node, ident):
        if not place.is_dir():
            raise NotMounted(f"The backup {shown(ident)} is not mounted")
        _hide(place)


def _scratch(node: Node, ident: str) -> Path:
    return node.paths.vz / "tmp" / f"backup-{ident}"


def _mounted_at(place: Path) -> Path | None:
    link = place / "target"
    goal = link.readlink() if link.is_symlink() else None
    return goal if goal is not None and mount.is_mount_point(goal) else None


def _take_down(directory: Path, goal: Path) -> None:
    try:
        driver = storage.find(directory)
    except PrivateMissing:  # of a virtual machine: a loop device, which goes by itself
        mount.umount(goal)
    else:
        driver.umount(directory, goal)


def _hide(place: Path) -> None:
    """Take away all of a mounted backup, or of a mount that was killed; nothing there is fine."""
    if not place.is_dir():
        return
    for goal in (_mounted_at(place), place / "root"):
        if goal is not None and mount.is_mount_point(goal):
            _take_down(place / "home", goal)
    home.dismantle(place / "home", NoProgress())
    file.remove_tree(place)
