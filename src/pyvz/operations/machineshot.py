"""Snapshots of a virtual machine: states inside its qcow2 images, and the memory of one that runs.

    <home>/Snapshots.xml             the tree, as for a container (store/savedstates.py)
    <home>/snapshots/<guid>.conf     vm.conf as it was
    <home>/snapshots/<guid>.json     how a running machine was put together (Layout)
    <home>/snapshots/<guid>.nvram    the firmware's variables, of one that has them
    <home>/snapshots/<guid>.tpm      what its TPM knew (that of one with memory is in there, too)

Disks: an internal snapshot of each image, called by the id.  Memory: QEMU writes it into the first
image beside it (snapshot-save).  Taking one commits when Snapshots.xml names it.

A switch ends QEMU, puts the configuration back and applies the disks' states; a state with memory
is loaded by a new QEMU that is put together as the old one was.  It is repaired forwards: the disks
are applied again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from pyvz.errors import SnapshotError, StorageError, Unsupported, VZError
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.operations import machinedrives, machineground, machinekeys, machinestate, machinetpm
from pyvz.operations.node import Node
from pyvz.store import savedstates
from pyvz.store.journal import Journal, Record
from pyvz.store.savedstates import SavedState, SavedStates
from pyvz.vm import firmware, image
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import Layout

log = logging.getLogger(__name__)

SHOT, SWITCH = "machine-shot", "machine-switch"
VERBS = frozenset({SHOT, SWITCH})  # whose journal records `repair` understands
POWERON = "poweron"  # state of a snapshot with memory, in the file's words
JOB = 600.0  # seconds for QEMU to write or read a state
_KEPT = ("NAME", "UUID", "VEID", "VE_PRIVATE", "DESCRIPTION")  # stay as they are at a switch


def _directory(env: Environment) -> Path:
    return env.home / "snapshots"


def _conf(env: Environment, guid: str) -> Path:
    return _directory(env) / f"{guid.strip('{}')}.conf"


def _layout(env: Environment, guid: str) -> Path:
    return _directory(env) / f"{guid.strip('{}')}.json"


def _variables(env: Environment, guid: str) -> Path:
    return _conf(env, guid).with_suffix(".nvram")


def _tpm(env: Environment, guid: str) -> Path:
    return _conf(env, guid).with_suffix(".tpm")


def _keep(source: Path, target: Path) -> None:
    """Copy the firmware's variables; without a source there are none afterwards."""
    if source.exists():
        write_atomic(target, source.read_bytes(), 0o600)
    else:
        target.unlink(missing_ok=True)


def _tag(guid: str) -> str:
    return guid.strip("{}")


def disks_of(config: Config) -> tuple[Drive, ...]:
    """Return the disks that are in a snapshot; raises Unsupported when one cannot be."""
    disks = tuple(each for each in config.machine.drives if each.is_disk and each.enabled)
    for drive in disks:
        if drive.format != "qcow2" or drive.device:
            raise Unsupported(
                f"{drive.name} is no qcow2 image: it cannot be in a snapshot",
                hint="Remove it, or disable it while the snapshot is taken.",
            )
    return disks


def take(
    node: Node, env: Environment, guid: str, disks: tuple[Drive, ...], *, running: bool
) -> None:
    _directory(env).mkdir(mode=0o700, exist_ok=True)
    write_atomic(_conf(env, guid), node.registry.conf_file(env).render(), 0o600)
    _keep(env.home / firmware.VARIABLES, _variables(env, guid))
    known = machinetpm.state(env)
    if known is not None:
        write_atomic(_tpm(env, guid), known, 0o600)
    if not running:
        for drive in disks:
            key = machinekeys.of(node, drive)
            image.snapshot(machinedrives.source_of(env, drive), "-c", _tag(guid), key=key)
        return
    made = machineground.layout(node, env)
    write_atomic(_layout(env, guid), json.dumps(made._asdict()), 0o600)
    monitor = node.machines.monitor(env.uuid)
    _job(monitor, "snapshot-save", guid, disks)


def _job(monitor: Monitor, command: str, guid: str, disks: Iterable[Drive]) -> None:
    names = [drive.name for drive in disks]
    words = {"job-id": f"job-{uuid4()}", "tag": _tag(guid), "devices": names}
    if command != "snapshot-delete":
        words["vmstate"] = names[0]
    monitor.job(command, words, timeout=JOB)


def discard(node: Node, env: Environment, guid: str, disks: tuple[Drive, ...]) -> None:
    """Remove what there is of a snapshot; what is missing is fine."""
    running = env.uuid in node.machines.running()
    try:
        if running and disks:
            _job(node.machines.monitor(env.uuid), "snapshot-delete", guid, disks)
        elif not running:
            for drive in disks:
                _drop(machinedrives.source_of(env, drive), guid, machinekeys.of(node, drive))
    except VZError as error:
        log.warning("%s: a state of snapshot %s may be left: %s", env.name, guid, error)
    _conf(env, guid).unlink(missing_ok=True)
    _layout(env, guid).unlink(missing_ok=True)
    _variables(env, guid).unlink(missing_ok=True)
    _tpm(env, guid).unlink(missing_ok=True)


def _drop(path: Path, guid: str, key: Secret | None) -> None:
    try:
        image.snapshot(path, "-d", _tag(guid), key=key)
    except StorageError as error:
        if "not find" not in error.details and "not found" not in error.details:
            raise


def apply(
    node: Node, env: Environment, states: SavedStates, item: SavedState, conf: ConfFile
) -> None:
    """Put configuration and disks back; may be repeated, and is when vzd died in it."""
    node.registry.save(env, conf)
    for drive in disks_of(node.registry.config(env)):
        key = machinekeys.of(node, drive)
        # What a bitmap tells of the changes since a backup would not be true any more.
        image.drop_bitmaps(machinedrives.source_of(env, drive), key=key)
        image.snapshot(machinedrives.source_of(env, drive), "-a", _tag(item.guid), key=key)
    _keep(_variables(env, item.guid), env.home / firmware.VARIABLES)
    known = _tpm(env, item.guid)
    machinetpm.put_back(env, known.read_bytes() if known.exists() else None)
    machinestate.forget(env)
    savedstates.save(env.home, states.switched(item.guid))


def configuration(node: Node, env: Environment, guid: str) -> ConfFile:
    """Return the configuration of the snapshot, with who the machine is now."""
    try:
        conf = ConfFile.parse(read_text_limited(_conf(env, guid)))
    except OSError as error:
        raise SnapshotError(f"The configuration of snapshot {guid} is missing") from error
    now = node.registry.conf_file(env)
    for key in _KEPT:
        conf.set(key, now.get(key))
    Config.parse(conf.values(), str(_conf(env, guid)))
    return conf


def load_memory(node: Node, env: Environment, guid: str) -> None:
    """Start QEMU with the memory of the snapshot; raises SnapshotError: it is stopped then."""
    try:
        made = Layout.from_json(json.loads(read_text_limited(_layout(env, guid))))
    except (OSError, ValueError) as error:
        raise SnapshotError(f"The memory of snapshot {guid} cannot be understood") from error
    config = node.registry.config(env)
    made = made._replace(hugepages=config.machine.hugepages)
    disks = disks_of(config)

    def load(monitor: Monitor) -> None:
        machinestate.plug_in(monitor, made)
        _job(monitor, "snapshot-load", guid, disks)

    state = machineground.State(made, load, incoming=False)
    machineground.bring_up(node, env, config, state)
    node.publish("ve-start", env)


def end(node: Node, env: Environment) -> None:
    """End a machine that runs, without asking its guest; what it has in memory is lost."""
    if env.uuid in node.machines.running():
        machineground.quit_machine(node, env)
    machineground.clear(node, env)


def repair(node: Node, env: Environment, record: Record) -> None:
    """Undo a snapshot that was not committed, or finish a switch; repeatable."""
    log.warning("%s: repairing an unfinished %s", env.name, record.verb)
    guid = str(record.data["guid"])
    states = savedstates.load(env.home)
    if record.verb == SWITCH:
        end(node, env)
        apply(node, env, states, states.get(guid), configuration(node, env, guid))
    elif not states.has(guid):
        discard(node, env, guid, disks_of(node.registry.config(env)))
    Journal.forget(node.paths, record.uuid)
