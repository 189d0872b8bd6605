"""What `prlsrvctl info` says of the node's devices: disks, network cards, what is on USB and PCI.

The names are those by which `prlctl set --device-add TYPE --device NAME` takes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvz.linux import hostdevices, usb
from pyvz.linux.hostdevices import NET, PCI, SECTOR, STORAGE, HostDevice
from pyvz.units import MIB

Row = dict[str, dict[str, str]]

BRIDGE: Final = 0x06  # class of a PCI device: what others are behind, and the machine itself
# pci.ids, "List of known device classes"
_CLASSES: Final = {
    0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory",
    0x07: "communication", 0x08: "system", 0x09: "input", 0x0B: "processor", 0x0C: "serial bus",
    0x0D: "wireless", 0x10: "encryption", 0x11: "signal processing", 0x12: "accelerator",
}  # fmt: skip


def rows(sysfs: Path = hostdevices.SYSFS) -> Row:
    """Return the node's devices by their names: what each is, and its type."""
    every = hostdevices.every(sysfs)
    found: Row = {}
    for kind, name_and_label in ((STORAGE, _disk), (NET, _card), (PCI, _pci)):
        for device in every:
            if device.kind == kind and (named := name_and_label(device)):
                type_, name, label = named
                found[name] = {"name": label, "type": type_}
        if kind == NET:
            found |= {name: {"name": label, "type": "usb"} for name, label in _usb(sysfs)}
    return found


def _disk(device: HostDevice) -> tuple[str, str, str]:
    size = int(device.facts.get("size", "0")) * SECTOR // MIB
    words = (device.facts.get("device/vendor", ""), device.facts.get("device/model", ""))
    label = " ".join(filter(None, (*words, f"{size} MiB")))
    return ("cdrom" if device.name.startswith("sr") else "hdd"), f"/dev/{device.name}", label


def _card(device: HostDevice) -> tuple[str, str, str] | None:
    if device.name == "lo":
        return None
    return "net", device.name, device.facts.get("address", "")


def _usb(sysfs: Path) -> Iterator[tuple[str, str]]:
    there = usb.devices(sysfs / "bus/usb/devices")
    alike = Counter(each.id for each in there)
    for each in there:
        yield each.id if alike[each.id] == 1 else each.place, each.label or each.id


def class_of(device: HostDevice) -> int:
    """Return the base class of a PCI device."""
    return int(device.facts.get("class", "0"), 16) >> 16


def _pci(device: HostDevice) -> tuple[str, str, str] | None:
    if class_of(device) == BRIDGE:
        return None
    numbers = [device.facts.get(word, "").removeprefix("0x") for word in ("vendor", "device")]
    label = f"{_CLASSES.get(class_of(device), 'other')} {':'.join(numbers)}"
    return "pci", device.name, f"{label} ({device.driver})" if device.driver else label
