"""Create and delete containers.

Everything is checked before anything changes.  A new home is built under another name, placed and
registered by `home.born`, which leaves nothing behind when a step fails, is cancelled, or vzd is
killed in it (`leftovers` finishes the latter).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from uuid import uuid4

from pyvz.errors import (
    BadValue,
    NoSpace,
    StorageError,
    Unsupported,
    UsageError,
)
from pyvz.model import params
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import (
    Environment,
    Kind,
    canonical_uuid,
    check_name,
    is_legacy_ctid,
)
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.model.vzconf import expand_veid, under
from pyvz.operations import (
    backuplease,
    home,
    leftovers,
    lifecycle,
    machineclone,
    machinecreate,
    machineimport,
    machinetemplate,
    options,
    pool,
    rootmount,
    storagepool,
    template,
)
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal
from pyvz.store.leftover import sweep
from pyvz.store.pools import DRIVER_OF_LAYOUT
from pyvz.units import UNLIMITED

log = logging.getLogger(__name__)

_EXPANSION = 2  # a compressed root file system becomes at least this much larger


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What to create.  None: the node's default.

    config: name of a sample.  private, root: paths as in ve.conf, $VEID allowed.
    ctid: legacy number.  layout: storage driver, or a layout number of the original.
    pool: the storage pool to make it in, with the pool's driver unless layout says else.
    options: (name, value) pairs of `set` in `dialect` ("prlctl" or "vzctl").
    source: a disk image, OVA or OVF made elsewhere, that a virtual machine is made of.
    """

    name: str | None = None
    kind: Kind = Kind.CT
    ostemplate: str | None = None
    config: str | None = None
    private: str | None = None
    root: str | None = None
    uuid: str | None = None
    ctid: str | None = None
    layout: str | None = None
    pool: str | None = None
    options: Sequence[tuple[str, str | None]] = ()
    dialect: str = "prlctl"
    no_disk: bool = False
    source: str | None = None


def create(node: Node, request: CreateRequest, progress: Progress | None = None) -> Environment:
    """Make a container from a template and register it; returns what it is.

    Raises BadValue, AlreadyExists, PrivateExists, NotFound (sample), TemplateNotFound, NoSpace,
    Unsupported, Cancelled: nothing was changed then.
    """
    progress = progress or NoProgress()
    if request.kind == Kind.VM:
        return _create_machine(node, request, progress)
    if request.source is not None:
        raise UsageError("Only virtual machines are made of images")
    driver = storage.load(_driver_name(node, request))
    env = identity(node, request, driver)
    with ExitStack() as held:
        held.enter_context(home.reserved(node, env.uuid, env.envid, env.name))
        held.enter_context(node.lease(env, "create"))
        home.check_place(node, env.home)
        conf = configuration(node, request, env)
        size = _disk_size(env.home, request, conf, driver)
        archive = _archive(node, request, env, conf, progress)
        with home.born(node, env, conf, "create") as staging:
            furnish(node, staging)
            if archive is not None:
                progress.stage(f"Unpacking {archive.name}")
                _create(driver, staging, (size, archive), _file_system(request, conf), progress)
                template.created(staging, (conf.get("OSTEMPLATE") or "").lstrip("."))
            progress.check()
    node.publish("ve-create", env)
    return env


def _create_machine(node: Node, request: CreateRequest, progress: Progress) -> Environment:
    """Make a virtual machine; what is for containers only is refused."""
    if request.ctid is not None or request.layout is not None or request.pool is not None:
        raise UsageError("A virtual machine has no numeric id, no layout and no pool")
    uuid = canonical_uuid(request.uuid) if request.uuid else str(uuid4())
    if uuid is None:
        raise BadValue(f"'{request.uuid}' is not a UUID")
    name = check_name(request.name or uuid)
    place_ = None if request.private is None else os.fspath(place(node, request.private, uuid))
    env = machinecreate.identity(node, uuid, name, place_)
    wanted = machinecreate.Machine(
        tuple(request.options), request.dialect, request.config, disk=not request.no_disk
    )
    if request.source is not None and (request.ostemplate is not None or request.no_disk):
        raise UsageError("What is imported has disks of its own: leave the template out")
    with home.reserved(node, env.uuid, env.name):
        if request.source is not None:
            wanted = replace(wanted, imported=machineimport.examine(Path(request.source), progress))
        elif request.ostemplate is not None and wanted.disk:
            made = machinetemplate.ensure(node, request.ostemplate, progress)
            wanted = replace(wanted, template=made)
        return machinecreate.create(node, env, wanted, progress)


def delete(
    node: Node, ref: str, *, force: bool = False, progress: Progress | None = None
) -> Environment:
    """Remove a stopped container with all its files; `force` stops and unmounts it first.

    Raises AlreadyRunning, AlreadyMounted, Busy, StorageError.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    if force:
        _bring_down(node, env, progress)
    with backuplease.lease(node, env, "delete"):
        repair(node, env)
        lifecycle.require(node, env, "delete")
        if env.kind == Kind.VM:
            machineclone.check_unused(node, env)
        _check_is_home(env)
        home.bury(node, env, progress)
    node.publish("ve-delete", env)
    return env


def repair(node: Node, env: Environment) -> None:
    """Finish or undo what a killed predecessor left of `env`, whatever its verb; lease held."""
    record = Journal.leftover(node.paths, env.uuid)
    if record is None or not leftovers.repair(node, record):
        lifecycle.repair(node, env)


def repair_leftover(node: Node, env: Environment) -> None:
    """Finish or undo what a killed verb left of one that is not registered (yet); lease held."""
    record = Journal.leftover(node.paths, env.uuid)
    if record is not None:
        leftovers.repair(node, record)


def recover(node: Node) -> None:
    """Finish or undo what verbs left that died in the middle of homes (start of vzd).

    Then forget temporary files and id ranges that belong to nobody any more.
    """
    leftovers.repair_all(node)
    sweep(node.paths)
    known = {env.uuid for env in node.registry.environments()}
    unfinished = {record.uuid for record in Journal.all(node.paths)}
    node.id_ranges.prune(known | unfinished | node.runtime.running().keys())


def identity(node: Node, request: CreateRequest, driver: storage.StorageDriver) -> Environment:
    """Return who the new environment, whose disk `driver` makes, will be; raises BadValue."""
    uuid = str(uuid4())
    if request.uuid is not None:
        given = canonical_uuid(request.uuid)
        if given is None:
            raise BadValue(f"'{request.uuid}' is not a UUID")
        uuid = given
    if request.ctid is not None and not is_legacy_ctid(request.ctid):
        raise BadValue(f"'{request.ctid}' is not a container id")
    envid = uuid if request.ctid is None else str(int(request.ctid))
    name = check_name(request.name or envid)
    if canonical_uuid(name) not in {None, uuid}:
        raise BadValue(
            f"'{name}' is the form of a UUID and cannot be a name",
            hint="To choose the UUID use --uuid.",
        )
    private = place(node, _private(node, request, driver), uuid)
    return Environment(uuid, envid, name, request.kind, private)


def home_for(node: Node, request: CreateRequest) -> Path:
    """Return where a container would be made; raises BadValue, NotFound."""
    return identity(node, request, storage.load(_driver_name(node, request))).home


def _private(node: Node, request: CreateRequest, driver: storage.StorageDriver) -> str:
    """Return VE_PRIVATE of the new container, $VEID in it; raises UsageError, NotFound."""
    if request.private is not None:
        if request.pool is not None:
            raise UsageError("A private area and a storage pool cannot both be given")
        return request.private
    chosen = storagepool.chosen(node, request.pool)
    if chosen.builtin:
        return pool.private_for(node, "" if request.no_disk else driver.name)
    return f"{chosen.path}/$VEID"


def _driver_name(node: Node, request: CreateRequest) -> str:
    """Return the storage driver: of the layout asked for, else of the pool, else of vz.conf."""
    if request.layout is None and request.private is None:
        chosen = storagepool.chosen(node, request.pool)
        if not chosen.builtin:
            return chosen.driver
    return driver_name(node, request.layout)


def place(node: Node, text: str, uuid: str) -> Path:
    """Return the private area that `text` (VE_PRIVATE, with $VEID) means; raises BadValue."""
    path = under(node.paths.root, os.path.normpath(expand_veid(text, uuid)))
    if len(path.relative_to(node.paths.root).parts) < 2:
        raise BadValue(f"'{text}' cannot be a private area")
    return path


def driver_name(node: Node, layout: str | None) -> str:
    """Return the storage driver for a layout (name or number); raises Unsupported."""
    if layout is not None:
        word = layout.partition(":")[0].lower()
        return DRIVER_OF_LAYOUT.get(word, word)
    wanted = node.config().layout.partition(":")[0].lower()
    return pool.default_driver(DRIVER_OF_LAYOUT.get(wanted, wanted))


def configuration(node: Node, request: CreateRequest, env: Environment) -> ConfFile:
    """Return the ve.conf of the new container: sample, options, identity; raises BadValue."""
    sample = request.config or node.config().configfile
    conf = node.registry.sample(sample).copy()
    for key in conf.values():
        row = params.by_key(key)
        if row is not None and row.local:  # a sample never says who somebody is
            conf.set(key, None)
    apply_options(conf, request, source=f"ve-{sample}.conf-sample")
    ostemplate = request.ostemplate or node.config().ostemplate
    values = {
        "VEID": env.envid,
        "UUID": env.uuid,
        "NAME": env.name,
        "VE_ROOT": home.explicit(env, request.root or node.config().ve_root),
        "VE_PRIVATE": home.private_of(node, env),
        "OSTEMPLATE": None if request.no_disk and not request.ostemplate else ostemplate,
        "ORIGIN_SAMPLE": sample,
        "ROOT_DISK": "no" if request.no_disk else None,
        "PLATFORM": "linux",
        "VERSION": "2",
    }
    for key, value in values.items():
        conf.set(key, value)
    return conf


def apply_options(conf: ConfFile, request: CreateRequest, *, source: str) -> None:
    """Put the options of the request over the sample; raises BadValue, UsageError, ConfigError."""
    old = Config.parse(conf.values(), source=source)
    made = options.plan(old, request.dialect, request.options)
    if made.password is not None or made.sample is not None:
        raise UsageError("--userpasswd and --applyconfig cannot be given when it is created")
    for warning in made.warnings:
        log.warning("%s", warning)
    for key, value in made.config.differences(old).items():
        conf.set(key, value)


def furnish(node: Node, directory: Path) -> None:
    """Make what every home has beside its disk."""
    home.take_ownership(node, directory)
    furnish_missing(directory)


def furnish_missing(directory: Path) -> None:
    """Make the directories that every home has, where they are not there."""
    for name in ("scripts", "dump"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)


def _disk_size(
    place: Path, request: CreateRequest, conf: ConfFile, driver: storage.StorageDriver
) -> int | None:
    """Return the size of the disk in bytes, None for the driver's default.

    Where the driver enforces none, a size that was asked for is refused; one that only comes from
    the sample is left in ve.conf for later and has no effect.
    """
    wanted = Config.parse(conf.values()).disk.space
    if wanted is None or wanted.limit >= UNLIMITED or request.no_disk:
        return None
    if driver.capabilities(_existing_parent(place)).quota:
        return wanted.limit * 1024
    asked = (params.by_option(request.dialect, name)[0] for name, _ in request.options)
    if any(row is not None and row.key == "DISKSPACE" for row in asked):
        raise Unsupported(
            f"A disk size cannot be set: {driver.name} has no quota on this node",
            hint="Leave --diskspace out; the container can use what the node has.",
        )
    log.warning("DISKSPACE of the sample has no effect: %s has no quota here", driver.name)
    return None


def _file_system(request: CreateRequest, conf: ConfFile) -> storage.NewFileSystem:
    """Return how the disk's file system is to be made: VEFSTYPE, and inodes that were asked for."""
    config = Config.parse(conf.values())
    asked = (params.by_option(request.dialect, name)[0] for name, _ in request.options)
    wanted = any(row is not None and row.key == "DISKINODES" for row in asked)
    inodes = rootmount.inodes(config) if wanted else None
    return storage.NewFileSystem(config.disk.fs_type or None, inodes)


def _create(
    driver: storage.StorageDriver,
    staging: Path,
    what: tuple[int | None, Path],
    made: storage.NewFileSystem,
    progress: Progress,
) -> None:
    """Make the disk in `staging`; only some drivers have a file system of its own to choose."""
    size, archive = what
    able = driver.capabilities(staging)
    if able.mount_options:
        many = cast("storage.ManyDisks", driver)
        many.create(staging, size=size, source=archive, progress=progress, made=made)
        return
    if made.inodes is not None and not able.inode_limit:
        raise Unsupported(
            f"A number of inodes cannot be set: {driver.name} has no file system of its own",
            hint="Leave --diskinodes out.",
        )
    driver.create(staging, size=size, source=archive, progress=progress)
    if made.inodes is not None:
        driver.limit_inodes(staging, made.inodes)


def _archive(
    node: Node, request: CreateRequest, env: Environment, conf: ConfFile, progress: Progress
) -> Path | None:
    """Return the template's cache, made when there is none yet; None without a root disk."""
    if request.no_disk:
        return None
    found = template.ensure_cache(node, conf.get("OSTEMPLATE") or "", progress)
    conf.set("OSTEMPLATE", f".{found.template}")
    if not conf.get("DISTRIBUTION"):
        conf.set("DISTRIBUTION", template.distribution(node, found.template))
    _check_space(env.home, found.path)
    return found.path


def _check_space(private: Path, archive: Path) -> None:
    parent = _existing_parent(private)
    needed = archive.stat().st_size * _EXPANSION
    free = os.statvfs(parent)
    available = free.f_bavail * free.f_frsize
    if available < needed:
        raise NoSpace(
            f"There is not enough space in {parent} for the container",
            details=f"{archive.name} needs more than {needed >> 20} MiB, "
            f"{available >> 20} MiB are free.",
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def _bring_down(node: Node, env: Environment, progress: Progress) -> None:
    # A machine that goes for good is not asked: its guest need not end well.
    options_ = lifecycle.StopOptions(kill=env.kind == Kind.VM)
    lifecycle.stop(node, env.uuid, options=options_, progress=progress)
    if node.status(env) == Status.MOUNTED:
        lifecycle.umount(node, env.uuid)


def _check_is_home(env: Environment) -> None:
    """Refuse to remove a directory that does not look like a container (a mistyped VE_PRIVATE).

    As in libvzctl (validate_ve_private in destroy.c): a layout mark, or a name that is the id.
    """
    if not env.home.exists() or storage.layout(env.home) is not None:
        return
    if env.kind == Kind.VM and (env.home / Kind.VM.conf_name).is_file():
        return
    if env.home.resolve().name not in {env.uuid, env.envid}:
        raise StorageError(
            f"{env.home} does not look like the private area of a container: not removed",
            hint="Check VE_PRIVATE. To only forget the container use: prlctl unregister",
        )
