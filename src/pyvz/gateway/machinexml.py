"""A virtual machine's configuration as libvirt's domain XML (reference/seeds-and-peers.md, 1.1).

    disk                        an image (file) or a disk of the node (block); cdrom: a CD drive
    interface type network      a card; the virtual network `host-routed` stands for routed ones
    serial, console             the serial line
    graphics type vnc           the remote display, with its port while it runs

Disks are named as the guest's buses would: sda (scsi; sata behind them), vda (virtio), hda (ide).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import VZError
from pyvz.gateway import domainxml
from pyvz.gateway.domain import Domain
from pyvz.gateway.nodexml import text_of
from pyvz.model.config import Machine
from pyvz.model.grammar_machine import AGENT_CHANNEL, INTERFACES, Drive
from pyvz.operations import machinechannel, machinedrives
from pyvz.operations.node import Node
from pyvz.units import KIB
from pyvz.vm import channels
from pyvz.vm.channels import AGENT
from pyvz.vm.runtime import channel_name
from pyvz.vm.spec import boot_places

MODELS: Final = {"rtl": "rtl8139"}  # names of ours that differ from libvirt's
_PREFIXES: Final = {"scsi": "sd", "sata": "sd", "virtio": "vd", "ide": "hd"}
_SATA_FIRST: Final = INTERFACES["scsi"]
_CRASH: Final = {"restart": "restart", "pause": "preserve"}


def described(node: Node, domain: Domain, *, live: bool) -> str:
    """Return the description of a machine; live: with what only a running one has."""
    machine = domain.config.machine
    top = domainxml.headed(domain, live=live)
    system = SubElement(top, "os")
    if machine.efi:
        system.set("firmware", "efi")
    kind = SubElement(system, "type", arch=os.uname().machine)
    kind.text = "hvm"
    kind.set("machine", machine.type or ("q35" if machine.chipset == "q35" else "pc"))
    if machine.secure_boot:
        features = SubElement(system, "firmware")
        for name in ("enrolled-keys", "secure-boot"):
            SubElement(features, "feature", enabled="yes", name=name)
    if machine.boot_menu:
        SubElement(system, "bootmenu", enable="yes")
    _memory(top, machine)
    _processor(top, domain)
    SubElement(top, "clock", offset="utc")
    crash = _CRASH.get(machine.on_crash, "preserve")
    domainxml.add_actions(top, crash=crash)
    _devices(node, top, domain, live=live)
    return text_of(top)


def _memory(top: Element, machine: Machine) -> None:
    wanted = (("hugepages", machine.hugepages), ("locked", machine.memory_lock))
    names = [name for name, on in wanted if on]
    if names:
        backing = SubElement(top, "memoryBacking")
        for name in names:
            SubElement(backing, name)


def sockets_of(machine: Machine) -> int:
    """Return over how many sockets all processors are spread; 0: there is room for more."""
    return 0 if machine.cpu_hotplug else machine.sockets


def _processor(top: Element, domain: Domain) -> None:
    machine = domain.config.machine
    sockets = sockets_of(machine)
    if machine.cpu_model:
        cpu = SubElement(top, "cpu", mode="custom", match="exact", check="none")
        SubElement(cpu, "model", fallback="forbid").text = machine.cpu_model
    elif machine.cpu_features or sockets:
        cpu = SubElement(top, "cpu", mode="host-passthrough", check="none")
    if sockets:
        cores = -(-domainxml.processors(domain) // sockets)
        SubElement(cpu, "topology", sockets=str(sockets), dies="1", cores=str(cores), threads="1")
    for each in machine.cpu_features:
        SubElement(cpu, "feature", policy=each.policy, name=each.name)


def drives(domain: Domain) -> Iterator[tuple[Drive, str]]:
    """Yield every drive that is there, with its name on the bus."""
    for drive in domain.config.machine.drives:
        if drive.enabled:
            yield drive, target(drive)


def target(drive: Drive) -> str:
    """Return the name of a drive's place, like sda."""
    first = _SATA_FIRST if drive.iface == "sata" else 0
    return f"{_PREFIXES[drive.iface]}{chr(ord('a') + first + drive.position)}"


def source(domain: Domain, drive: Drive) -> Path | None:
    """Return the image or device in a drive; None for an empty CD drive."""
    if not (drive.image or drive.device) or not (drive.is_disk or drive.connected):
        return None
    return machinedrives.source_of(domain.env, drive)


def _devices(node: Node, top: Element, domain: Domain, *, live: bool) -> None:
    devices = SubElement(top, "devices")
    places = boot_places(domain.config)
    for drive, name in drives(domain):
        _disk(devices, domain, drive, (name, places.get(drive.name, 0)), live=live)
    cards = [card for card in domain.config.network.interfaces or () if card.ifname != "venet0"]
    for index, card in enumerate(cards):
        network = domainxml.ROUTED if card.type == "routed" else card.network
        element = domainxml.add_card(devices, card._replace(network=network), live=live)
        model = dict(card.other).get("card", "virtio")
        SubElement(element, "model", type=MODELS.get(model, model))
        if place := places.get(f"net{index}"):
            SubElement(element, "boot", order=str(place))
    SubElement(SubElement(devices, "serial", type="pty"), "target", port="0")
    SubElement(SubElement(devices, "console", type="pty"), "target", type="serial", port="0")
    _channels(node, devices, domain, live=live)
    _graphics(node, devices, domain, live=live)
    if domain.config.machine.tpm:
        tpm = SubElement(devices, "tpm", model="tpm-crb")
        SubElement(tpm, "backend", type="emulator", version="2.0")
    _always(devices, usb=domain.config.machine.usb)
    video = SubElement(devices, "video")
    SubElement(video, "model", type="vga", vram=str(domain.config.machine.video * KIB), heads="1")


def _always(devices: Element, *, usb: bool) -> None:
    """Add what every machine has (vm/commandline.py)."""
    if usb:
        SubElement(devices, "input", type="tablet", bus="usb")
    SubElement(devices, "memballoon", model="virtio")
    random = SubElement(devices, "rng", model="virtio")
    SubElement(random, "backend", model="random").text = "/dev/urandom"
    SubElement(devices, "panic", model="isa")


def _disk(
    devices: Element, domain: Domain, drive: Drive, place: tuple[str, int], *, live: bool
) -> None:
    kind = "block" if drive.device else "file"
    element = SubElement(devices, "disk", type=kind, device="disk" if drive.is_disk else "cdrom")
    form = drive.format if drive.is_disk and drive.format else "raw"
    SubElement(element, "driver", name="qemu", type=form)
    path = source(domain, drive)
    if path is not None:
        attribute = "dev" if drive.device else "file"
        SubElement(element, "source", {attribute: os.fspath(path)})
    name, order = place
    SubElement(element, "target", dev=name, bus=drive.iface)
    if drive.serial:
        SubElement(element, "serial").text = drive.serial
    if not drive.is_disk:
        SubElement(element, "readonly")
    if order:
        SubElement(element, "boot", order=str(order))
    if live:
        SubElement(element, "alias", name=drive.name)


def _channels(node: Node, devices: Element, domain: Domain, *, live: bool) -> None:
    """Add the port of the guest's agent, which every machine has, and those of its own."""
    names, opened = domain.config.machine.channels, {}
    if live:
        with suppress(VZError):
            names = machinechannel.names(node, domain.env)
            opened = channels.opened(node.machines.monitor(domain.env.uuid))
    for number, name in enumerate((AGENT_CHANNEL, *names)):
        channel = SubElement(devices, "channel", type="unix")
        own = channel_name(number - 1) if number else AGENT
        if live and number:
            path = node.machines.directory(domain.env.uuid) / f"{own}.sock"
            SubElement(channel, "source", mode="bind", path=os.fspath(path))
        target = SubElement(channel, "target", type="virtio", name=name)
        if own in opened:
            target.set("state", "connected" if opened[own] else "disconnected")


def _graphics(node: Node, devices: Element, domain: Domain, *, live: bool) -> None:
    machine = domain.config.machine
    if machine.vnc_mode == "off":
        return
    manual = machine.vnc_mode == "manual"
    port = machine.vnc_port if manual else -1
    if live:
        with suppress(VZError, LookupError, ValueError):
            port = int(node.machines.monitor(domain.env.uuid).execute("query-vnc")["service"])
    element = SubElement(devices, "graphics", type="vnc", port=str(port))
    element.set("autoport", "no" if manual else "yes")
    element.set("listen", machine.vnc_address)
    SubElement(element, "listen", type="address", address=machine.vnc_address)
