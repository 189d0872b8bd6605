"""Virtual machines made of their descriptions, and changed by them, as `prlctl` would do it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from pyvz.errors import FileMissing
from pyvz.gateway import (
    domain,
    failure,
    machineblock,
    machinedefine,
    machinedisks,
    machinexml,
)
from pyvz.gateway.domain import Domain
from pyvz.gateway.domaindefine import Wanted
from pyvz.gateway.failure import Failure
from pyvz.gateway.machinedefine import Display, Machine
from pyvz.model import config as settings
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_machine import Drive
from pyvz.model.grammar_processor import Features
from pyvz.model.task import Progress
from pyvz.operations import configure, machinecreate, provision
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.operations.provision import CreateRequest
from pyvz.vm.spec import boot_places

Options = list[tuple[str, str | None]]
_NOTHING = {"cpu-model": "host", "cpu-features": "none", "channels": "none"}


class Order(NamedTuple):
    """A machine that is wanted.  limits: options of `create`; cards: of one `set` each."""

    wanted: Wanted
    machine: Machine
    limits: Options
    cards: Sequence[Options]


def make(node: Node, order: Order, progress: Progress) -> Environment:
    """Make a machine; nothing of it is left when a part of it is refused."""
    _check(order.machine)
    request = CreateRequest(
        name=order.wanted.name,
        kind=Kind.VM,
        uuid=order.wanted.uuid or None,
        options=[*order.limits, *_board(order.machine)],
        no_disk=True,
    )
    with ExitStack() as undo:
        env = provision.create(node, request, progress)
        undo.callback(provision.delete, node, env.uuid, force=True)
        steps: list[Options] = [
            [("device-del", "cdrom0")],
            *map(machinedisks.addition, order.machine.disks),
            *order.cards,
        ]
        steps += [display(order.machine.display)] if order.machine.display else []
        for step in steps:
            configure.set_options(node, env.uuid, SetRequest("prlctl", step), progress)
        put_in_order(node, env, order.machine, progress)
        undo.pop_all()
    return env


def home_of(node: Node, wanted: Wanted) -> Path:
    """Return where a machine with that UUID has its home."""
    return machinecreate.parent_of(node) / wanted.uuid


def put_in_order(node: Node, env: Environment, machine: Machine, progress: Progress) -> None:
    """Have a machine boot in the order that is wanted, of the devices that it has now."""
    sequence = _sequence(domain.lookup(node, env.uuid), machine)
    if sequence:
        options: Options = [("device-bootorder", sequence)]
        configure.set_options(node, env.uuid, SetRequest("prlctl", options), progress)


def differences(present: Domain, machine: Machine) -> list[Options]:
    """Return what makes a machine of PRESENT but for the order of booting; raises Failure (84)."""
    found = machinedisks.differences(present, machine.disks)
    config = present.config.machine
    wanted = machine.display
    known = None if config.vnc_mode == "off" else Display(
        config.vnc_address, config.vnc_port if config.vnc_mode == "manual" else 0, ""
    )  # fmt: skip
    if wanted is None and known is not None:
        found.append([("vnc-mode", "off")])
    elif wanted is not None and (known is None or wanted.password):
        found.append(display(wanted))
    elif wanted is not None and wanted != known:
        found.append([each for each in display(wanted) if each[0] != "vnc-nopasswd"])
    found += _hardware(config, machine)
    board = _switches(machine)
    if board != (there := _switches(config)):
        new = [each for each in board if each not in there]
        found.append([(name, "on" if on else "off") for name, on in new])
    return found


def attached(element: Element) -> Options:
    """Return what adds a <disk>; its image has to be there."""
    disk = machinedefine.disk(element)
    if disk.source and not os.path.lexists(disk.source):
        raise FileMissing(f"There is no image {disk.source}")
    machinedisks.check(disk)
    return machinedisks.addition(disk)


def detached(present: Domain, element: Element) -> Options:
    """Return what takes a <disk> away; its image stays."""
    source = element.find("source")
    path = (source.get("file") or source.get("dev") or "") if source is not None else ""
    # The image says which disk it is: a client may still have the name that it asked for.
    named = [drive for drive, _ in machinexml.drives(present)
             if path and machinexml.source(present, drive) == Path(path)]  # fmt: skip
    drive = named[0] if len(named) == 1 else _drive(present, element)
    return [("device-del", drive.name)]


def updated(present: Domain, element: Element) -> Options:
    """Return what changes the disc in a CD drive; nothing else of a drive can be changed."""
    disk, drive = machinedefine.disk(element), _drive(present, element)
    if not disk.cdrom or drive.is_disk:
        raise Failure(failure.OPERATION_UNSUPPORTED, "Only the disc in a CD drive can be changed")
    if not disk.source:
        return [("device-disconnect", drive.name)]
    machinedisks.check(disk)
    return [("device-set", drive.name), ("device" if disk.block else "image", disk.source)]


def display(wanted: Display) -> Options:
    """Return the options of a remote display; raises Failure (67) for an open one."""
    found: Options = [("vnc-mode", "manual" if wanted.port else "auto")]
    if wanted.port:
        found.append(("vnc-port", str(wanted.port)))
    found.append(("vnc-address", wanted.address))
    if wanted.password:
        return [*found, ("vnc-passwd", wanted.password)]
    if not wanted.address.startswith("127.") and wanted.address != "::1":
        raise Failure(
            failure.UNSUPPORTED,
            f"A display that listens on {wanted.address} needs a password: passwd='...'",
        )
    return [*found, ("vnc-nopasswd", "")]


def _check(machine: Machine) -> None:
    """Raise what speaks against the images; `prlctl set` would make one that is not there."""
    for disk in machine.disks:
        machinedisks.check(disk)
    if machine.display is not None:
        display(machine.display)


def _drive(present: Domain, element: Element) -> Drive:
    """Return the drive that a <disk> means: by its name on the bus, else by its image."""
    target, source = element.find("target"), element.find("source")
    name = (target.get("dev") or "") if target is not None else ""
    path = (source.get("file") or source.get("dev") or "") if source is not None else ""
    return machineblock.find(present, name or path)


def _switches(machine: Machine | settings.Machine) -> list[tuple[str, bool]]:
    """Return what of a machine is on or off."""
    return [
        ("efi-boot", machine.efi),
        ("efi-secure-boot", machine.secure_boot),
        ("tpm", machine.tpm),
        ("hugepages", machine.hugepages),
        ("memory-lock", machine.memory_lock),
    ]


def _words(cpu: str, features: str, channels: Sequence[str]) -> dict[str, str]:
    """Return what is said of processor and channels, by the options of `prlctl set`."""
    return {"cpu-model": cpu, "cpu-features": features, "channels": " ".join(channels)}


def _hardware(config: settings.Machine, machine: Machine) -> list[Options]:
    """Return what makes processor and channels as they are wanted."""
    features = Features().format(config.cpu_features)
    there = _words(config.cpu_model, features, config.channels)
    found: list[Options] = [
        [(name, word or _NOTHING[name])]
        for name, word in _words(machine.cpu, machine.features, machine.channels).items()
        if word != there[name]
    ]
    if machine.crash not in ("", config.on_crash):
        found.append([("on-crash", machine.crash)])
    if machine.sockets != machinexml.sockets_of(config):
        found.append(_topology(machine.sockets))
    return found


def _topology(sockets: int) -> Options:
    """Return what spreads the processors over SOCKETS, with no room for more; 0: as it comes."""
    return [("cpu-sockets", str(sockets or 1)), ("cpu-hotplug", "no" if sockets else "yes")]


def _board(machine: Machine) -> Options:
    found: Options = [(name, "on") for name, on in _switches(machine) if on]
    found += _topology(machine.sockets) if machine.sockets else []
    words = _words(machine.cpu, machine.features, machine.channels) | {"on-crash": machine.crash}
    return found + [(name, word) for name, word in words.items() if word]


def _sequence(present: Domain, machine: Machine) -> str:
    """Return the order of booting in our words where it differs from what is set; else ""."""
    config = present.config
    names = list(boot_places(config))
    cards = [each for each in config.network.interfaces or () if each.ifname != "venet0"]
    every = [each.name for each in config.machine.drives] + [f"net{n}" for n in range(len(cards))]
    if machine.boot:
        wanted = [name for kind in machine.boot for name in every if name.startswith(kind)]
    else:
        wanted = _numbered(present, machine)
    return " ".join(wanted) if wanted and wanted != names[: len(wanted)] else ""


def _numbered(present: Domain, machine: Machine) -> list[str]:
    """Return the devices with a place of their own in the order, by their places."""
    pairs = machinedisks.matched(present, machine.disks).kept
    places = [(disk.boot, drive.name) for drive, disk in pairs if disk.boot]
    cards = [card for card in present.config.network.interfaces or () if card.ifname != "venet0"]
    for number, card in enumerate(cards):
        own = [place for mac, place in machine.card_places if mac == card.mac.lower()]
        new = [place for mac, place in machine.card_places[number : number + 1] if not mac]
        places += [(place, f"net{number}") for place in (own or new)[:1] if place]
    return [name for _, name in sorted(places)]
