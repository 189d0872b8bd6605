"""Snapshots of a virtual machine: states inside its qcow2 images, and the memory of one that runs.

    <home>/Snapshots.xml             the tree, as for a container (store/savedstates.py)
    <home>/snapshots/<guid>.conf     vm.conf as it was
    <home>/snapshots/<guid>.json     how a running machine was put together (Layout)
    <home>/snapshots/<guid>.memory   its memory, when no disk is a qcow2 image, or all are encrypted
    <home>/snapshots/<guid>.nvram    the firmware's variables, of one that has them
    <home>/snapshots/<guid>.tpm      what its TPM knew (that of one with memory is in there, too)

Disks: an internal snapshot of each qcow2 image, called by the id; one of its own of each ploop disk
(storage/bundle.py).  Memory: QEMU writes it into the first qcow2 image that is not encrypted.
Taking one commits when Snapshots.xml names it.

A switch ends QEMU, puts the configuration back and applies the disks' states; a state with memory
is loaded by a new QEMU that is put together as the old one was.  It is repaired forwards: the disks
are applied again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from pyvz.errors import InvalidState, SnapshotError, StorageError, Unsupported, VZError
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.model.task import NoProgress
from pyvz.operations import (
    machinedrives,
    machineground,
    machinekeys,
    machinestate,
    machinetpm,
    machineusb,
)
from pyvz.operations.node import Node
from pyvz.storage import bundle
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
_ABLE = frozenset({"qcow2", machinedrives.BUNDLE})  # formats of disks that can be in a snapshot
_KEPT = ("NAME", "UUID", "VEID", "VE_PRIVATE", "DESCRIPTION")  # stay as they are at a switch


def _directory(env: Environment) -> Path:
    return env.home / "snapshots"


def _conf(env: Environment, guid: str) -> Path:
    return _directory(env) / f"{guid.strip('{}')}.conf"


def _layout(env: Environment, guid: str) -> Path:
    return _directory(env) / f"{guid.strip('{}')}.json"


def _memory(env: Environment, guid: str) -> Path:
    return _conf(env, guid).with_suffix(".memory")


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
        if drive.format not in _ABLE or drive.device:
            raise Unsupported(
                f"{drive.name} is no qcow2 image and no ploop disk: it cannot be in a snapshot",
                hint="Remove it, or disable it while the snapshot is taken.",
            )
    return disks


def able(config: Config) -> tuple[Drive, ...]:
    """Return the disks that can be in a snapshot; what else there is came later."""
    disks = (each for each in config.machine.drives if each.is_disk and each.enabled)
    return tuple(each for each in disks if each.format in _ABLE and not each.device)


def is_kept(env: Environment, drive: Drive) -> bool:
    """Whether the image of a disk is part of a snapshot."""
    path = machinedrives.source_of(env, drive)
    for item in savedstates.load(env.home).items:
        with suppress(VZError, OSError):
            conf = ConfFile.parse(read_text_limited(_conf(env, item.guid)))
            drives = Config.parse(conf.values()).machine.drives
            if path in [machinedrives.source_of(env, each) for each in drives if each.image]:
                return True
    return False


def check(node: Node, env: Environment, guid: str, conf: ConfFile) -> None:
    """Raise SnapshotError when a disk of the snapshot is gone, or knows nothing of it.

    A switch that finds it out in its middle could go neither forwards nor back.
    """
    for drive in disks_of(Config.parse(conf.values())):
        path = machinedrives.source_of(env, drive)
        try:
            if drive.format == machinedrives.BUNDLE:
                found = bundle.has(path, guid)
            else:
                image.check(image.look(path), path, "qcow2", base=True, keyed=bool(drive.keyid))
                names = image.snapshots(path, key=machinekeys.of(node, drive))
                found = _tag(guid) in names
        except VZError as error:
            raise SnapshotError(
                f"{drive.name} cannot be put back: {error.message}", details=error.details
            ) from error
        if not found:
            raise SnapshotError(f"{drive.name} cannot be put back: {path} has no such snapshot")


def take(
    node: Node,
    env: Environment,
    guid: str,
    disks: tuple[Drive, ...],
    *,
    running: bool,
    memory: bool = True,
) -> None:
    """Keep what the disks hold; of a machine that runs its memory too, if that is wanted."""
    _directory(env).mkdir(mode=0o700, exist_ok=True)
    write_atomic(_conf(env, guid), node.registry.conf_file(env).render(), 0o600)
    _keep(env.home / firmware.VARIABLES, _variables(env, guid))
    known = machinetpm.state(env)
    if known is not None:
        write_atomic(_tpm(env, guid), known, 0o600)
    if not running:
        _keep_disks(node, env, guid, disks)
        return
    monitor = node.machines.monitor(env.uuid)
    inside, bundles = _sorted(disks)
    if not memory:
        with _standing(monitor) if bundles else nullcontext():
            _disks_only(monitor, guid, inside)
            _keep_disks(node, env, guid, bundles)
        return
    made = machineground.layout(node, env)
    write_atomic(_layout(env, guid), json.dumps(made._asdict()), 0o600)
    with _without_usb(node, env, monitor):
        _keep_all(node, env, guid, disks)


@contextmanager
def _without_usb(node: Node, env: Environment, monitor: Monitor) -> Iterator[None]:
    """Have a machine without USB devices of the node for the block: its memory tells of none."""
    try:
        machineusb.take_out(monitor)
        yield
    finally:
        machineusb.put_in(node, env, node.registry.config(env), monitor)


def _keep_all(node: Node, env: Environment, guid: str, disks: tuple[Drive, ...]) -> None:
    """Keep memory and disks of a machine that runs."""
    monitor = node.machines.monitor(env.uuid)
    inside, bundles = _sorted(disks)
    place = _place(inside)
    if place and not bundles:
        _job(monitor, "snapshot-save", guid, inside, place)
        return
    if not place and monitor.state != "running":
        raise InvalidState(
            f"{env.name} is paused, and no disk of it is a qcow2 image (and not encrypted), to keep"
            " its memory in",
            hint=f"Let it go on first: prlctl resume {env.name}",
        )
    with _standing(monitor):  # memory and all disks are of one moment
        if place:
            _job(monitor, "snapshot-save", guid, inside, place)
        else:
            _disks_only(monitor, guid, inside)
            machinestate.write(_memory(env, guid), monitor, NoProgress())
        _keep_disks(node, env, guid, bundles)


@contextmanager
def _standing(monitor: Monitor) -> Iterator[None]:
    """Have a machine stand still for the block, all that it wrote on its disks."""
    ran = monitor.state == "running"
    monitor.execute("stop")
    try:
        yield
    except BaseException:
        let_go(monitor, ran=ran)
        raise
    let_go(monitor, ran=ran)


def let_go(monitor: Monitor, *, ran: bool) -> None:
    """Let a machine go on that stood still for its snapshot; it does when it RAN before."""
    machinestate.call_off(monitor)
    if ran:
        monitor.execute("cont")


def _sorted(disks: Iterable[Drive]) -> tuple[tuple[Drive, ...], tuple[Drive, ...]]:
    """Return those that are qcow2 images, in which QEMU keeps states, and the ploop disks."""
    found = tuple(disks)
    bundles = tuple(each for each in found if each.format == machinedrives.BUNDLE)
    return tuple(each for each in found if each not in bundles), bundles


def _place(inside: Iterable[Drive]) -> str:
    """Return the qcow2 disk in which QEMU keeps the memory, "" when none can.

    Not an encrypted one: QEMU (7.2) would end with an assertion, and the machine with it.
    """
    return next((drive.name for drive in inside if not drive.keyid), "")


def _keep_disks(node: Node, env: Environment, guid: str, disks: Iterable[Drive]) -> None:
    """Make the snapshot of disks that nobody writes to."""
    for drive in disks:
        path = machinedrives.source_of(env, drive)
        if drive.format == machinedrives.BUNDLE:
            bundle.keep(path, guid)
        else:
            image.snapshot(path, "-c", _tag(guid), key=machinekeys.of(node, drive))


def _disks_only(monitor: Monitor, guid: str, disks: Iterable[Drive]) -> None:
    """Keep all disks of one moment, while the machine goes on."""
    data = [{"device": drive.name, "name": _tag(guid)} for drive in disks]
    actions = [{"type": "blockdev-snapshot-internal-sync", "data": each} for each in data]
    if not actions:
        return
    monitor.execute("transaction", {"actions": actions}, timeout=JOB)


def _job(
    monitor: Monitor, command: str, guid: str, disks: Iterable[Drive], place: str = ""
) -> None:
    """Run a job on DISKS; PLACE: the one that has the memory."""
    names = [drive.name for drive in disks]
    words = {"job-id": f"job-{uuid4()}", "tag": _tag(guid), "devices": names}
    if place:
        words["vmstate"] = place
    monitor.job(command, words, timeout=JOB)


def discard(node: Node, env: Environment, guid: str, disks: tuple[Drive, ...]) -> None:
    """Remove what there is of a snapshot; what is missing is fine."""
    running = env.uuid in node.machines.running()
    inside, bundles = _sorted(disks)
    try:
        for drive in bundles:
            bundle.forget(machinedrives.source_of(env, drive), guid)
        if running and inside:
            _job(node.machines.monitor(env.uuid), "snapshot-delete", guid, inside)
        elif not running:
            for drive in inside:
                _drop(machinedrives.source_of(env, drive), guid, machinekeys.of(node, drive))
    except VZError as error:
        log.warning("%s: a state of snapshot %s may be left: %s", env.name, guid, error)
    _conf(env, guid).unlink(missing_ok=True)
    _layout(env, guid).unlink(missing_ok=True)
    _memory(env, guid).unlink(missing_ok=True)
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
    inside, bundles = _sorted(disks_of(node.registry.config(env)))
    for drive in bundles:
        bundle.switch(machinedrives.source_of(env, drive), item.guid)
    for drive in inside:
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
    inside, _ = _sorted(disks_of(config))
    file = _memory(env, guid)
    apart = file.exists()

    def load(monitor: Monitor) -> None:
        if apart:
            machinestate.read(env, file, monitor, made)
        else:
            machinestate.plug_in(monitor, made)
            _job(monitor, "snapshot-load", guid, inside, _place(inside))

    state = machineground.State(made, load, incoming=apart)
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
        if record.data.get("ran") and env.uuid in node.machines.running():
            monitor = node.machines.monitor(env.uuid)
            machineusb.put_in(node, env, node.registry.config(env), monitor)
            let_go(monitor, ran=True)
        discard(node, env, guid, able(node.registry.config(env)))
    Journal.forget(node.paths, record.uuid)
