"""What a snapshot of a container consists of, and the journalled ways to change that.

    <home>/<disk>.hdd/            the driver's: the content of every disk of the home
    <home>/dump/{guid}.ve.conf    the configuration at that time
    <home>/dump/{guid}/           the memory, where it ran then (dump.py)
    <home>/Snapshots.xml          the tree; what it names exists, nothing else does

Taking one commits when Snapshots.xml names it, deleting when it does not any more.  A switch
commits when the first disk is switched: from then on a death is repaired forwards, an error
backwards (several disks are kept under a guid of their own until the end, as libvzctl does).
The caller holds the lease.  Source: libvzctl lib/snapshot.c.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pyvz.errors import NotFound, PrivateMissing, StorageError, Unsupported, VZError
from pyvz.linux import file, filesystem
from pyvz.linux.mount import is_mount_point
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_disk import Disks
from pyvz.model.task import Progress
from pyvz.operations import diskmount, dump, home
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store import savedstates
from pyvz.store.journal import Journal, Record
from pyvz.store.leftover import sweep_directory
from pyvz.store.savedstates import SavedState, SavedStates

log = logging.getLogger(__name__)

TAKE, SWITCH, DISCARD = "snapshot", "snapshot-switch", "snapshot-delete"
VERBS = frozenset({TAKE, SWITCH, DISCARD})  # whose journal records `repair` understands

_DUMP = "dump"
_SWITCHING = "switching"
_STAYS = ("VE_ROOT", "VE_PRIVATE", "VEID", "UUID", "NAME")  # private_param_filter, snapshot.c


def disks(env: Environment) -> tuple[str, ...]:
    """Return the disks that a snapshot is made of; raises Unsupported for a driver without."""
    driver = storage.find(env.home)
    able = driver.capabilities(env.home)
    if not able.snapshot:
        raise Unsupported(
            f"Snapshots are not possible: the disk of {env.name} is of layout {driver.name}",
            hint="A container on a ploop image has them; see prlctl convert --layout.",
        )
    return _disks_in(driver, env.home)


def _disks_in(driver: storage.StorageDriver, directory: Path) -> tuple[str, ...]:
    if not driver.capabilities(directory).disks:
        return (storage.ROOT_DISK,)
    return tuple(storage.many_disks(driver, directory).disks(directory))


class Manner(NamedTuple):
    """How a snapshot of a running container is taken.

    still: its processes are halted for the time of it, so that several disks are of one moment.
    memory: its memory is kept, too, of the same moment.
    """

    still: bool = False
    memory: bool = False


def take(
    node: Node,
    env: Environment,
    states: SavedStates,
    item: SavedState,
    manner: Manner,
    progress: Progress,
) -> None:
    """Keep every disk as it is now, as `item` of `states`.

    Raises AlreadyExists, BadValue, NoSpace, StorageError, CheckpointError: then nothing has
    changed.
    """
    names = disks(env)
    new = states.with_snapshot(item)
    data = home.to_data(env) | {"guid": item.guid, "disks": names} | manner._asdict()

    def keep() -> None:
        for name in names:
            storage.find(env.home).snapshot(env.home, item.guid, disk=name)

    with Journal.begin(node.paths, env.uuid, TAKE, data) as journal:
        try:
            with home.storage_errors(f"No snapshot of {env.name} could be made"):
                _keep_conf(node, env, item.guid)
                if manner.memory:
                    place = memory_of(env, item.guid)
                    dump.save(node, env, place, progress, at=keep, leave_running=True)
                else:
                    with _still(node, env, wanted=manner.still):
                        keep()
                savedstates.save(env.home, new)
        except BaseException:
            _take_back(env, item.guid, names)
            journal.done()
            raise


def switch(node: Node, env: Environment, states: SavedStates, guid: str) -> None:
    """Make the disks and the configuration what they were at the snapshot `guid`.

    The container does not run and is not mounted.  A disk that came later stays as it is.
    Raises SnapshotNotFound, NoSpace, StorageError.
    """
    guid = states.get(guid).guid
    names = disks(env)
    _restored(node, env, guid)  # raises while nothing has changed
    keep = savedstates.braced(str(uuid4())) if len(names) > 1 else ""
    data = home.to_data(env) | {"guid": guid, "disks": names, "keep": keep}
    with Journal.begin(node.paths, env.uuid, SWITCH, data) as journal:
        try:
            with home.storage_errors(f"{env.name} could not be switched to snapshot {guid}"):
                for name in names if keep else ():
                    storage.find(env.home).snapshot(env.home, keep, disk=name)
                journal.note(_SWITCHING)
                _switch_disks(env, guid, names)
        except BaseException:
            _switch_back(env, keep, names)
            journal.done()
            raise
        with home.storage_errors(f"Switching {env.name} to snapshot {guid} is not finished"):
            _after_switch(node, env, data)


def discard(node: Node, env: Environment, states: SavedStates, guid: str, *, below: bool) -> None:
    """Forget a snapshot, `below` with all below it; else those move up to its parent.

    Raises SnapshotNotFound, StorageError.
    """
    gone = states.subtree(guid) if below else (states.get(guid),)
    new = states.without_subtree(guid) if below else states.without(guid)
    names = disks(env)
    data = home.to_data(env) | {"guids": [item.guid for item in gone], "disks": names}
    with (
        Journal.begin(node.paths, env.uuid, DISCARD, data) as journal,
        home.storage_errors(f"The snapshot {guid} of {env.name} could not be deleted"),
    ):
        try:
            savedstates.save(env.home, new)
        except BaseException:
            if savedstates.load(env.home) == states:
                journal.done()
            raise
        for item in gone:
            _remove(env, item.guid, names)


def repair(node: Node, record: Record) -> None:
    """Undo or finish what a killed verb of VERBS left, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: repairing an unfinished %s", env.name, record.verb)
    names = _words(record.data["disks"])
    thaw(node, env)
    for directory in (env.home, env.home / _DUMP, *(env.home / name for name in names)):
        sweep_directory(directory, age=0.0)  # the lease is ours: nobody else is writing
    states = savedstates.load(env.home)
    if record.verb == TAKE:
        if record.data.get("memory"):
            dump.let_go_on(node, env)
        if record.data.get("still"):
            _move_on(node, env)
        if not states.has(str(record.data["guid"])):
            _take_back(env, str(record.data["guid"]), names)
    elif record.verb == DISCARD:
        for guid in _words(record.data["guids"]):
            if not states.has(guid):
                _remove(env, guid, names)
    elif record.step(_SWITCHING) is None:
        _remove_disks(env, str(record.data["keep"]), names)
    else:
        _switch_disks(env, str(record.data["guid"]), names)
        _after_switch(node, env, record.data)
    Journal.forget(node.paths, record.uuid)


def thaw(node: Node, env: Environment) -> None:
    """Let writers go on to every mounted disk of `env` that a killed snapshot has frozen."""
    for target in (node.root(env), *diskmount.targets(node, env)):
        if not is_mount_point(target):
            continue
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if filesystem.thaw(fd):
                log.warning("%s: %s was frozen", env.name, target)
        except OSError as error:  # a file system that cannot be frozen at all
            log.debug("%s: %s", target, error)
        finally:
            os.close(fd)


def forget_all(directory: Path, states: SavedStates) -> None:
    """Remove the snapshots from the copied disks in `directory`: a clone is what is there now."""
    if not states.items:
        return
    driver = storage.find(directory)
    for name in _disks_in(driver, directory):
        for item in states.items:
            with suppress(NotFound):
                driver.delete_snapshot(directory, item.guid, disk=name)


def memory_of(env: Environment, guid: str) -> Path:
    """Return where the memory of a snapshot is, when it has any."""
    return env.home / _DUMP / guid


def saved_conf(env: Environment, guid: str) -> Path:
    """Return where the configuration of a snapshot is."""
    return env.home / _DUMP / f"{guid}.ve.conf"


@contextmanager
def _still(node: Node, env: Environment, *, wanted: bool) -> Iterator[None]:
    """Halt the processes of the container for the length of the block."""
    if not wanted:
        yield
        return
    node.runtime.pause(env.uuid)
    try:
        yield
    finally:
        _move_on(node, env)


def _move_on(node: Node, env: Environment) -> None:
    if env.uuid in node.runtime.running(env.uuid) and node.cgroups.frozen(env.uuid):
        node.runtime.unpause(env.uuid)


def _keep_conf(node: Node, env: Environment, guid: str) -> None:
    """Keep ve.conf without the disks that are not part of the home (copy_snapshot_config)."""
    conf = node.registry.conf_file(env).copy()
    text = conf.get("DISK")
    if text:
        ours = tuple(x for x in Disks().parse(text) if not x.device and not x.image.startswith("/"))
        conf.set("DISK", Disks().format(ours) or None)
    path = saved_conf(env, guid)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_atomic(path, conf.render(), 0o600)


def _restored(node: Node, env: Environment, guid: str) -> ConfFile:
    """Return the ve.conf that a switch to `guid` puts in place; raises StorageError."""
    now = node.registry.conf_file(env)
    path = saved_conf(env, guid)
    try:
        conf = ConfFile.parse(file.read_text_limited(path))
        Config.parse(conf.values(), source=str(path))
    except FileNotFoundError:
        log.warning("%s: snapshot %s has no configuration: it stays", env.name, guid)
        return now.copy()
    except VZError as error:
        raise StorageError(
            f"The configuration of snapshot {guid} cannot be used: {error.message}"
        ) from error
    for key in _STAYS:
        conf.set(key, now.get(key))
    conf.set("DISK", _merged(conf.get("DISK") or "", now.get("DISK") or "") or None)
    return conf


def _merged(then: str, now: str) -> str:
    """Return the disks that are there now, those of the snapshot as they were then."""
    old = {(x.uuid, x.image, x.device): x for x in Disks().parse(then)}
    return Disks().format(
        tuple(old.get((x.uuid, x.image, x.device), x) for x in Disks().parse(now))
    )


def _switch_disks(env: Environment, guid: str, names: Iterable[str]) -> None:
    driver = storage.find(env.home)
    for name in names:
        try:
            driver.switch(env.home, guid, disk=name)
        except NotFound as error:
            if name == storage.ROOT_DISK or isinstance(error, PrivateMissing):
                raise
            log.info("%s: %s came after snapshot %s: it stays", env.name, name, guid)


def _switch_back(env: Environment, keep: str, names: Iterable[str]) -> None:
    """Undo what `_switch_disks` did, wholly or in part."""
    if not keep:
        return
    driver = storage.find(env.home)
    for name in names:
        with suppress(NotFound):
            driver.switch(env.home, keep, disk=name)
    _remove_disks(env, keep, names)


def _after_switch(node: Node, env: Environment, data: Mapping[str, object]) -> None:
    """Do all that comes when the disks are switched; may be repeated."""
    guid = str(data["guid"])
    node.registry.save(env, _restored(node, env, guid))
    savedstates.save(env.home, savedstates.load(env.home).switched(guid))
    dump.drop(env)  # of a later moment than the disks are now
    memory = memory_of(env, guid)
    if memory.is_dir():
        made = dump.default(env).with_name("Dump.new")
        file.remove_tree(made)
        file.copy_tree(memory, made)
        made.rename(dump.default(env))
    if keep := str(data["keep"]):
        _remove_disks(env, keep, _words(data["disks"]))


def _take_back(env: Environment, guid: str, names: Iterable[str]) -> None:
    """Undo a `take`, wholly or in part."""
    states = savedstates.load(env.home)
    if states.has(guid):
        savedstates.save(env.home, states.without(guid))
    _remove(env, guid, names)


def _remove(env: Environment, guid: str, names: Iterable[str]) -> None:
    _remove_disks(env, guid, names)
    for place in (memory_of(env, guid), memory_of(env, guid + ".new")):
        file.remove_tree(place)
    saved_conf(env, guid).unlink(missing_ok=True)


def _remove_disks(env: Environment, guid: str, names: Iterable[str]) -> None:
    """Remove the content of a snapshot from every disk that has it."""
    if not guid:
        return
    driver = storage.find(env.home)
    for name in names:
        with suppress(NotFound):
            driver.delete_snapshot(env.home, guid, disk=name)


def _words(value: object) -> tuple[str, ...]:
    """Return a list of a journal record."""
    return tuple(str(word) for word in value) if isinstance(value, (list, tuple)) else ()
