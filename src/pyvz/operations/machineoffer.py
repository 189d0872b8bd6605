"""What a virtual machine needs of another node: how its disks travel, what its QEMU has to be.

A disk of a machine that stands still travels as its file is, with the snapshots that are in it.
One of a machine that runs is mirrored into a new image (vm/mirror.py); what it stands on (a linked
clone) becomes part of it, and snapshots inside of a qcow2 image, which nothing carries from QEMU to
QEMU, are refused.  Those of a ploop disk are files beside its image, which travel as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvz.errors import AddressInUse, FileMissing, InvalidState, NodesDiffer, Unsupported
from pyvz.linux import file
from pyvz.migration.offer import HOME, MIRROR, DiskOffer, Offer
from pyvz.model.conffile import ConfFile
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.operations import (
    cloudpassword,
    machinedrives,
    machineground,
    machinekeys,
    machinenet,
    machinepending,
    machinestate,
    vncpassword,
)
from pyvz.operations.node import Node
from pyvz.storage import bundle
from pyvz.store import checkpoints, savedstates
from pyvz.vm import accelerator, firmware, helptext, image, tpm
from pyvz.vm.spec import Layout

REST: Final = "rest"  # the name under which everything beside the disks travels
_SNAPSHOTS: Final = ":snapshots"  # behind the name of a ploop disk, of which only they are files
_BESIDE: Final = (
    *("scripts", "dump", "snapshots", savedstates.NAME, checkpoints.NAME),
    *(firmware.VARIABLES, tpm.DIRECTORY),
)
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)")


def disks_of(config: Config) -> tuple[Drive, ...]:
    """Return the disks that a machine has."""
    return tuple(each for each in config.machine.drives if each.is_disk)


def offers(node: Node, env: Environment, *, live: bool) -> tuple[DiskOffer, ...]:
    """Return in which form each disk travels; raises Unsupported, InvalidState."""
    config = node.registry.config(env)
    inside = any(each.format != machinedrives.BUNDLE for each in disks_of(config))
    if live and inside and savedstates.load(env.home).items:
        raise InvalidState(
            f"{env.name} has snapshots and runs: they cannot go along while it does",
            hint=f"prlctl suspend {env.name}, migrate it, and resume it there: everything travels.",
        )
    _check_devices(env, config)
    disks = [_disk(env, drive, live=live) for drive in disks_of(config)]
    if live:
        disks += _snapshots(env, disks_of(config))
    return (*disks, DiskOffer(REST, HOME, "", None, 0))


def _snapshots(env: Environment, drives: tuple[Drive, ...]) -> Iterator[DiskOffer]:
    """Yield what of ploop disks goes beside the mirrors."""
    for drive in drives:
        path = machinedrives.source_of(env, drive)
        if drive.enabled and drive.format == machinedrives.BUNDLE and bundle.snapshots(path):
            used = sum(_taken(path / name) for name in bundle.snapshots(path))
            yield DiskOffer(path.name + _SNAPSHOTS, HOME, "", None, used)


def _check_devices(env: Environment, config: Config) -> None:
    """Raise Unsupported when it has a device of this node."""
    usb = [(each.name, "USB", each.device) for each in config.machine.usb_devices]
    pci = [(each.name, "PCI", each.device) for each in config.machine.pci_devices]
    for name, bus, device in (*usb, *pci):
        raise Unsupported(
            f"{name} of {env.name} is a {bus} device of this node ({device})",
            hint=f"Take it away first: prlctl set {env.name} --device-del {name}",
        )


def _disk(env: Environment, drive: Drive, *, live: bool) -> DiskOffer:
    if drive.device:
        raise Unsupported(
            f"{drive.name} of {env.name} is a disk of this node ({drive.device})",
            hint="Take it away first, or copy it into an image.",
        )
    path = machinedrives.source_of(env, drive)
    if path.parent != env.home:
        raise Unsupported(
            f"The image of {drive.name} is outside of the home of {env.name} ({path})",
            hint="Move it inside, or take it away first.",
        )
    if drive.base and not live:
        raise InvalidState(
            f"{env.name} is a linked clone: its disks stand on those of a template of this node",
            hint="Migrate it while it runs: its disks become whole ones on the way.",
        )
    if drive.format == machinedrives.BUNDLE:
        place = bundle.find(path)
        if live and drive.enabled:
            return DiskOffer(drive.name, MIRROR, "", place.size, _taken(place.image))
        return DiskOffer(path.name, HOME, "", None, file.tree_size(path))
    found = image.look(path)
    keyed = bool(drive.keyid)
    image.check(found, path, drive.format, base=bool(drive.base), keyed=keyed)
    used = _taken(path) + (_taken(Path(drive.base)) if drive.base else 0)
    if live and drive.enabled:
        return DiskOffer(drive.name, MIRROR, "", found.size, used)
    return DiskOffer(path.name, HOME, "", None, used)


def _taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def names(env: Environment, disk: DiskOffer) -> tuple[str, ...]:
    """Return the names in the home that travel under one offer."""
    if disk.name.endswith(_SNAPSHOTS) and not (env.home / disk.name).exists():
        directory = disk.name.removesuffix(_SNAPSHOTS)
        return tuple(f"{directory}/{name}" for name in bundle.snapshots(env.home / directory))
    if disk.name != REST:
        return (disk.name,)
    names = (*_BESIDE, vncpassword.FILE, cloudpassword.FILE)
    return tuple(name for name in names if (env.home / name).exists()) or ("dump",)


def configuration(conf: ConfFile, *, live: bool) -> ConfFile:
    """Return the configuration as it is to be there: whole disks, when they are mirrored."""
    if live:
        old = Config.parse(conf.values(), lenient=True)
        drives = tuple(each._replace(base="") for each in old.machine.drives)
        for key, value in old.changed({"machine.drives": drives}).differences(old).items():
            conf.set(key, value)
    return conf


def give_new_cards(node: Node, env: Environment, conf: ConfFile) -> None:
    """Give a copy network cards of its own; the IP addresses stay, for people to change."""
    old = Config.parse(conf.values(), lenient=True)
    bare = tuple(
        nic._replace(mac="", host_mac="", host_ifname="", ifaceid="")
        for nic in old.network.interfaces
    )
    fresh = machinenet.settled(node, env, old.changed({"network.interfaces": bare}))
    for key, value in fresh.differences(old).items():
        conf.set(key, value)


def needs(node: Node, env: Environment, *, live: bool) -> dict[str, Any]:
    """Return what the other node has to know of QEMU here."""
    chosen = machineground.accelerator_of(node)
    layout: Layout | None = None
    found: dict[str, Any] = {}
    if live:
        layout = machineground.layout(node, env)
        monitor = node.machines.monitor(env.uuid)
        machinepending.check_plugged(env, node.registry.config(env), monitor, "be moved")
        found["paused"] = monitor.state != "running"
    elif machinestate.path(env).exists():
        layout = machinestate.layout(env)
    config = node.registry.config(env)
    found |= {"qemu": list(version()), "type": layout.type if layout else config.machine.type}
    return found | {"accelerator": chosen.name, "memory": layout is not None}


def version() -> tuple[int, ...]:
    """Return the version of QEMU on this node; raises Unsupported."""
    words = helptext.version()
    found = _VERSION.search(words)
    if found is None:
        raise Unsupported("The version of QEMU is not known", details=words[:200])
    return tuple(int(part) for part in found.groups())


def check(node: Node, offer: Offer) -> None:
    """Raise why QEMU of this node cannot have it: NodesDiffer, NotFound (key), AddressInUse."""
    asked = offer.checkpoint
    here, there = version(), tuple(int(part) for part in asked.get("qemu") or ())
    if asked.get("memory") and here < there:
        raise NodesDiffer(
            f"QEMU of this node ({_text(here)}) is older than that of the other one "
            f"({_text(there)})",
            hint="Migrate it stopped, or install the same version here.",
        )
    type_ = str(asked.get("type") or "")
    if type_ and type_ not in _types():
        raise NodesDiffer(f"QEMU of this node does not have the machine type {type_}")
    if asked.get("memory"):
        _accelerator(node, str(asked.get("accelerator") or ""))
    config = Config.parse(ConfFile.parse(offer.conf).values(), lenient=True)
    _discs(config)
    for drive in disks_of(config):
        machinekeys.of(node, drive)  # a key does not travel: it has to be there
    if config.machine.efi:
        firmware.find(secure=config.machine.secure_boot)
    if config.machine.tpm:
        tpm.check()
    _cards(node, offer, config)


def _text(found: tuple[int, ...]) -> str:
    return ".".join(map(str, found))


def _types() -> set[str]:
    return {line.split()[0] for line in helptext.of("-machine").splitlines() if line.strip()}


def _accelerator(node: Node, there: str) -> None:
    """What a processor was to a guest that runs, it has to stay."""
    here = accelerator.choose(node.paths.run, node.config().values.get(accelerator.KEY, ""))
    if here.name != there:
        raise NodesDiffer(
            f"Virtual machines run by {here.name} on this node, by {there} on the other one",
            details=here.reason,
            hint="Migrate it stopped.",
        )


def _discs(config: Config) -> None:
    for drive in config.machine.drives:
        inside = drive.is_disk or not drive.enabled or not drive.connected
        if not inside and drive.image and not Path(drive.image).exists():
            raise FileMissing(
                f"The disc in {drive.name}, {drive.image}, is not on this node",
                hint=f"Take it out first: --device-disconnect {drive.name}",
            )


def _cards(node: Node, offer: Offer, config: Config) -> None:
    ours = {nic.mac.lower(): nic.ifname for nic in config.network.interfaces if nic.mac}
    for other, theirs, _ in node.registry.snapshot():
        for nic in theirs.network.interfaces:
            if other.uuid != offer.uuid and nic.mac.lower() in ours:
                raise AddressInUse(f"{other.name} has the hardware address {nic.mac}, too")
