"""The node's devices as libvirt's clients see them, by the names that libvirt's own driver gives.

computer      pci_0000_00_02_0      usb_1_2      net_eth0_52_54_00_12_34_56      block_vda
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import nodexml
from pyvz.linux.hostdevices import NET, PCI, SECTOR, STORAGE, USB, HostDevice

COMPUTER: Final = "computer"
SYSTEM: Final = "system"  # its kind, beside those of hostdevices
_PREFIXES: Final = {PCI: "pci_", USB: "usb_", NET: "net_", STORAGE: "block_"}


def name_of(device: HostDevice) -> str:
    """Return what libvirt's clients call a device."""
    words = [device.name]
    if device.kind == NET:
        words.append(device.facts.get("address", ""))
    elif device.kind == STORAGE:
        words.append(_serial(device))
    plain = re.sub("[^0-9A-Za-z]", "_", "_".join(filter(None, words)))
    return _PREFIXES[device.kind] + plain


def parent_of(device: HostDevice, devices: list[HostDevice]) -> str:
    """Return the name of what a device is in."""
    return next((name_of(each) for each in devices if each.path == device.parent), COMPUTER)


def computer(uuid: str) -> str:
    """Describe the node itself, UUID is its own, as far as its firmware shows it."""
    top = Element("device")
    SubElement(top, "name").text = COMPUTER
    capability = SubElement(top, "capability", type=SYSTEM)
    known = nodexml.firmware_says()
    if product := known.get("product_name"):
        SubElement(capability, "product").text = product
    hardware = SubElement(capability, "hardware")
    _known(hardware, known, {"vendor": "sys_vendor", "version": "product_version"})
    SubElement(hardware, "uuid").text = uuid
    firmware = {"vendor": "bios_vendor", "version": "bios_version", "release_date": "bios_date"}
    _known(SubElement(capability, "firmware"), known, firmware)
    return nodexml.text_of(top)


def _known(top: Element, known: Mapping[str, str], names: Mapping[str, str]) -> None:
    for tag, name in names.items():
        if text := known.get(name):
            SubElement(top, tag).text = text


def described(device: HostDevice, devices: list[HostDevice]) -> str:
    """Describe one of the node's devices."""
    top = Element("device")
    SubElement(top, "name").text = name_of(device)
    SubElement(top, "path").text = os.fspath(device.path)
    SubElement(top, "parent").text = parent_of(device, devices)
    if device.driver and device.kind in {PCI, USB}:
        SubElement(SubElement(top, "driver"), "name").text = device.driver
    _PARTS[device.kind](SubElement(top, "capability", type=device.kind), device)
    return nodexml.text_of(top)


def _pci(top: Element, device: HostDevice) -> None:
    facts = device.facts
    SubElement(top, "class").text = facts.get("class", "0x000000")
    for tag, number in zip(("domain", "bus", "slot", "function"), device.address, strict=True):
        SubElement(top, tag).text = str(number)
    SubElement(top, "product", id=facts.get("device", "0x0000"))
    SubElement(top, "vendor", id=facts.get("vendor", "0x0000"))
    if facts.get("numa_node", "").isdecimal():
        SubElement(top, "numa", node=facts["numa_node"])


def _usb(top: Element, device: HostDevice) -> None:
    facts = device.facts
    SubElement(top, "bus").text = facts.get("busnum", "0")
    SubElement(top, "device").text = facts.get("devnum", "0")
    for tag, number, word in (("product", "idProduct", "product"),
                              ("vendor", "idVendor", "manufacturer")):  # fmt: skip
        element = SubElement(top, tag, id=f"0x{facts.get(number, '0000')}")
        element.text = facts.get(word)


def _card(top: Element, device: HostDevice) -> None:
    SubElement(top, "interface").text = device.name
    if address := device.facts.get("address"):
        SubElement(top, "address").text = address
    link(top, device)
    SubElement(top, "capability", type="80203")


def _disk(top: Element, device: HostDevice) -> None:
    facts = device.facts
    SubElement(top, "block").text = f"/dev/{device.name}"
    SubElement(top, "drive_type").text = "cdrom" if device.name.startswith("sr") else "disk"
    for tag in ("model", "vendor"):
        if text := facts.get(f"device/{tag}"):
            SubElement(top, tag).text = text
    if serial := _serial(device):
        SubElement(top, "serial").text = serial
    sectors, block = int(facts.get("size", "0")), int(facts.get("queue/logical_block_size", SECTOR))
    if facts.get("removable") == "1":
        top = SubElement(top, "capability", type="removable")
        SubElement(top, "media_available").text = str(int(bool(sectors)))
        SubElement(top, "media_size").text = str(sectors * SECTOR)
    else:
        SubElement(top, "size").text = str(sectors * SECTOR)
    SubElement(top, "logical_block_size").text = str(block)
    SubElement(top, "num_blocks").text = str(sectors * SECTOR // max(1, block))


def link(top: Element, device: HostDevice) -> None:
    """Add whether a card has a link, and how fast it is (Mbit/s) where that is known."""
    state = device.facts.get("operstate", "unknown")
    element = SubElement(top, "link", state=state)
    if state == "up" and device.facts.get("speed", "").isdecimal():
        element.set("speed", device.facts["speed"])


def _serial(device: HostDevice) -> str:
    return device.facts.get("serial") or device.facts.get("device/serial") or ""


_PARTS: Final[dict[str, Callable[[Element, HostDevice], None]]] = {
    PCI: _pci, USB: _usb, NET: _card, STORAGE: _disk,
}  # fmt: skip


def find(devices: list[HostDevice], name: str) -> HostDevice | None:
    """Return the device that clients call NAME."""
    return next((each for each in devices if name_of(each) == name), None)
