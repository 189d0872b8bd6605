"""Clone a stopped virtual machine: the same images and settings, another identity.

A linked clone stands on the images of a template, which is never written: its own images hold only
what differs.  Nothing in an image says so: the configuration names the base, and QEMU is told.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
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

Pair = tuple[Drive, Drive]  # of the original, and what becomes of it in the copy


class Wanted(NamedTuple):
    """destination: the directory of the copy's home.  template: the copy is marked as one.

    linked: it stands on the images of the original.  detach: it goes without the disks whose images
    are not in the original's home; else it gets copies of those images (a disk of the node is
    shared).
    """

    destination: str | None = None
    template: bool = False
    linked: bool = False
    detach: bool = False


def clone(
    node: Node, source: Environment, name: str, wanted: Wanted, progress: Progress
) -> Environment:
    """Copy SOURCE under a new name.

    Raises AlreadyRunning, AlreadyExists, NoSpace, Unsupported, Cancelled: nothing is left then.
    """
    uuid = str(uuid4())
    place = wanted.destination and f"{wanted.destination.rstrip('/')}/{uuid}"
    copy = machinecreate.identity(node, uuid, check_name(name), place)
    with ExitStack() as held:
        held.enter_context(home.reserved(node, copy.uuid, copy.name))
        held.enter_context(node.lease(source, "clone"))
        held.enter_context(node.lease(copy, "clone"))
        machine.repair(node, source)
        require(node, source, "clone")
        config = node.registry.config(source)
        if wanted.linked and config.identity.type != "template":
            raise InvalidState(
                f"{source.name} is not a template: a linked clone would see its changes",
                hint=f"prlctl set {source.name} --template yes",
            )
        home.check_place(node, copy.home)
        pairs = _pairs(source, config, wanted)
        conf = _configuration(node, source, copy, pairs)
        conf.set("VE_TYPE", "template" if wanted.template else None)
        with home.born(node, copy, conf, "clone") as staging:
            machinecreate.furnish(node, staging)
            _fill(node, source, pairs, staging, progress)
            progress.check()
    node.publish("ve-create", copy, source=source.uuid)
    return copy


def _configuration(
    node: Node, source: Environment, copy: Environment, pairs: tuple[Pair, ...]
) -> ConfFile:
    conf = node.registry.conf_file(source).copy()
    old = Config.parse(conf.values())
    drives = tuple(new for _, new in pairs)
    left = {drive.name for drive in old.machine.drives} - {drive.name for drive in drives}
    cards = tuple(
        nic._replace(mac="", host_mac="", host_ifname="", ifaceid="")
        for nic in old.network.interfaces
    )
    new = old.changed(
        {
            "machine.drives": drives,
            "machine.boot": tuple(name for name in old.machine.boot if name not in left),
            "network.interfaces": cards,
            # The node has each only once.
            **{"machine.usb_devices": (), "machine.pci_devices": ()},
        }
    )
    new = machinenet.settled(node, copy, new)
    for key, value in new.differences(old).items():
        conf.set(key, value)
    conf.set("VE_PRIVATE", os.fspath(copy.home))
    for key in ("UUID", "VEID", "NAME"):
        conf.set(key, {"UUID": copy.uuid, "VEID": copy.envid, "NAME": copy.name}[key])
    return conf


def _pairs(source: Environment, config: Config, wanted: Wanted) -> tuple[Pair, ...]:
    """Return the drives that the copy gets, each behind that of the original which it is made of.

    Raises Unsupported.
    """
    pairs = []
    taken = {drive.image for drive in config.machine.drives}
    for drive in config.machine.drives:
        path = Path(drive.image)
        inside = not path.is_absolute() or path.is_relative_to(source.home)
        outside = drive.is_disk and (bool(drive.device) or not inside)
        if outside and wanted.detach:
            continue
        image_ = drive.image
        if drive.is_disk and path.is_absolute():
            image_ = os.fspath(path.relative_to(source.home)) if inside else _free(taken)
            taken.add(image_)
        new = drive._replace(image=image_)
        if wanted.linked and drive.is_disk and drive.image:
            new = new._replace(base=_base(source, drive, outside=outside))
        pairs.append((drive, new))
    return tuple(pairs)


def _free(taken: set[str]) -> str:
    return next(name for n in range(1, 99) if (name := f"harddisk{n}.hdd") not in taken)


def _base(source: Environment, drive: Drive, *, outside: bool) -> str:
    """Return the image on which a linked clone's disk stands; raises Unsupported."""
    if outside:
        raise Unsupported(
            f"The image of {drive.name} is not in the home of {source.name}",
            hint="Without it: --detach-external-hdd yes",
        )
    if drive.format != "qcow2" or drive.base or drive.keyid:
        raise Unsupported(
            f"{drive.name} is no whole qcow2 image without encryption: it cannot be the base"
        )
    return os.fspath(machinedrives.source_of(source, drive))


def _fill(
    node: Node,
    source: Environment,
    pairs: tuple[Pair, ...],
    staging: Path,
    progress: Progress,
) -> None:
    """Put images and firmware variables into the new home."""
    states = savedstates.load(source.home).items
    for drive, new in pairs:
        if not drive.is_disk or not drive.image:
            continue
        path = machinedrives.source_of(source, drive)
        target = staging / new.image
        progress.stage(f"Copying {drive.name}")
        if drive.format == machinedrives.BUNDLE:
            bundle.copy(path, target)
            continue
        found = image.look(path)
        image.check(found, path, drive.format, keyed=bool(drive.keyid))
        if new.base != drive.base:
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
