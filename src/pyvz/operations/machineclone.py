"""Clone a stopped virtual machine: the same images and settings, another identity.

A linked clone stands on the images of a template, which is never written: its own images hold only
what differs.  Nothing in an image says so: the configuration names the base, and QEMU is told.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from pyvz.errors import Busy, InvalidState, Unsupported
from pyvz.linux.file import write_atomic
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment, check_name
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import home, machine, machinecreate, machinedrives, machinekeys, machinenet
from pyvz.operations.node import Node
from pyvz.operations.transition import require
from pyvz.storage import bundle
from pyvz.store import savedstates
from pyvz.vm import firmware, image


def clone(
    node: Node,
    source: Environment,
    name: str,
    wanted: tuple[str | None, bool, bool],
    progress: Progress,
) -> Environment:
    """Copy SOURCE under a new name; WANTED: (directory, as a template, linked).

    Raises AlreadyRunning, AlreadyExists, NoSpace, Unsupported, Cancelled: nothing is left then.
    """
    destination, template, linked = wanted
    uuid = str(uuid4())
    place = None if destination is None else f"{destination.rstrip('/')}/{uuid}"
    copy = machinecreate.identity(node, uuid, check_name(name), place)
    with ExitStack() as held:
        held.enter_context(home.reserved(node, copy.uuid, copy.name))
        held.enter_context(node.lease(source, "clone"))
        held.enter_context(node.lease(copy, "clone"))
        machine.repair(node, source)
        require(node, source, "clone")
        config = node.registry.config(source)
        if linked and config.identity.type != "template":
            raise InvalidState(
                f"{source.name} is not a template: a linked clone would see its changes",
                hint=f"prlctl set {source.name} --template yes",
            )
        home.check_place(node, copy.home)
        conf = _configuration(node, source, copy, template=template, linked=linked)
        with home.born(node, copy, conf, "clone") as staging:
            machinecreate.furnish(node, staging)
            _fill(node, (source, config), staging, progress, linked=linked)
            progress.check()
    node.publish("ve-create", copy, source=source.uuid)
    return copy


def _configuration(
    node: Node, source: Environment, copy: Environment, *, template: bool, linked: bool
) -> ConfFile:
    conf = node.registry.conf_file(source).copy()
    old = Config.parse(conf.values())
    drives = tuple(_drive(source, drive, linked=linked) for drive in old.machine.drives)
    cards = tuple(
        nic._replace(mac="", host_mac="", host_ifname="", ifaceid="")
        for nic in old.network.interfaces
    )
    new = old.changed(
        {"machine.drives": drives, "network.interfaces": cards, "machine.usb_devices": ()}
    )  # the node has each only once
    new = machinenet.settled(node, copy, new)
    for key, value in new.differences(old).items():
        conf.set(key, value)
    conf.set("VE_TYPE", "template" if template else None)
    conf.set("VE_PRIVATE", os.fspath(copy.home))
    for key in ("UUID", "VEID", "NAME"):
        conf.set(key, {"UUID": copy.uuid, "VEID": copy.envid, "NAME": copy.name}[key])
    return conf


def _drive(source: Environment, drive: Drive, *, linked: bool) -> Drive:
    if not drive.is_disk or not drive.image:
        return drive
    if Path(drive.image).is_absolute():
        raise Unsupported(
            f"The image of {drive.name} is not in the home of {source.name}: it is not cloned",
            hint="Remove the disk, clone, and add it again.",
        )
    if linked:
        if drive.format != "qcow2" or drive.base or drive.keyid:
            raise Unsupported(
                f"{drive.name} is no whole qcow2 image without encryption: it cannot be the base"
            )
        return drive._replace(base=os.fspath(machinedrives.source_of(source, drive)))
    return drive


def _fill(
    node: Node,
    of: tuple[Environment, Config],
    staging: Path,
    progress: Progress,
    *,
    linked: bool,
) -> None:
    """Put images and firmware variables into the new home."""
    source, config = of
    states = savedstates.load(source.home).items
    for drive in config.machine.drives:
        if not drive.is_disk or not drive.image:
            continue
        path = machinedrives.source_of(source, drive)
        target = staging / drive.image
        if drive.format == machinedrives.BUNDLE:
            progress.stage(f"Copying {drive.name}")
            bundle.copy(path, target)
            continue
        found = image.look(path)
        image.check(found, path, drive.format, keyed=bool(drive.keyid))
        progress.stage(f"Copying {drive.name}")
        if linked:
            image.create(target, found.size)
        elif states and not drive.base:
            key = machinekeys.of(node, drive)
            image.convert(
                path, target, drive.format, progress, wanted=drive.format, keys=(key, key)
            )
        else:
            image.copy(path, target, progress)
    variables = source.home / firmware.VARIABLES
    if variables.exists():
        write_atomic(staging / firmware.VARIABLES, variables.read_bytes(), 0o600)


def check_unused(node: Node, env: Environment) -> None:
    """Raise Busy when linked clones stand on the images of ENV."""
    for other, config, _ in node.registry.snapshot():
        bases = [drive.base for drive in config.machine.drives if drive.base]
        if other.uuid != env.uuid and any(Path(base).parent == env.home for base in bases):
            raise Busy(
                f"{other.name} is a linked clone of {env.name}", hint=f"Delete {other.name} first."
            )
