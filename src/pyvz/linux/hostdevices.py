"""The devices of the node as sysfs shows them: on PCI and USB, network cards, disks.

Links that lead to environments, and disks that are files (loop, zram), are no devices of the node.
Source: Documentation/ABI/testing/sysfs-bus-pci, sysfs-bus-usb, sysfs-class-net of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

SYSFS: Final = Path("/sys")
PCI, USB, NET, STORAGE = "pci", "usb_device", "net", "storage"
SECTOR: Final = 512  # bytes; the unit of `size`, whatever the disk's own is

_PCI_ADDRESS: Final = re.compile(r"([0-9a-f]{4,}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    PCI: ("class", "vendor", "device", "numa_node"),
    USB: ("busnum", "devnum", "idVendor", "idProduct", "manufacturer", "product"),
    NET: ("address", "operstate", "speed"),
    STORAGE: (
        *("size", "ro", "removable", "serial", "device/serial", "device/model", "device/vendor"),
        "queue/logical_block_size",
    ),
}


class HostDevice(NamedTuple):
    """A device.  name: the kernel's (0000:00:02.0, eth0, vda); path: below /sys, real.

    parent: path of the device of ours that it is in, None: it is the machine's own.
    facts: what its files say, by their names; those that are not there are left out.
    """

    kind: str
    name: str
    path: Path
    facts: Mapping[str, str]
    driver: str = ""
    parent: Path | None = None

    @property
    def address(self) -> tuple[int, int, int, int]:
        """Domain, bus, slot and function of a device on PCI; raises ValueError for others."""
        found = _PCI_ADDRESS.fullmatch(self.name)
        if found is None:
            raise ValueError(f"{self.name} is not on PCI")
        return tuple(int(part, 16) for part in found.groups())  # type: ignore[return-value]


def every(sysfs: Path = SYSFS) -> list[HostDevice]:
    """Return all devices, each one behind what it is in."""
    found: dict[Path, HostDevice] = {}
    for each in (*_pci(sysfs), *_usb(sysfs), *_cards(sysfs), *_disks(sysfs)):
        inside = next((path for path in each.path.parents if path in found), None)
        found[each.path] = each._replace(parent=inside)
    return list(found.values())


def interface(name: str, sysfs: Path = SYSFS) -> HostDevice:
    """Return what sysfs knows of a link, which may be a bridge; nothing where it is not there."""
    return _device(NET, sysfs / "class/net" / name)


def _pci(sysfs: Path) -> Iterator[HostDevice]:
    for entry in _listed(sysfs / "bus/pci/devices"):
        if _PCI_ADDRESS.fullmatch(entry.name):
            yield _device(PCI, entry)


def _usb(sysfs: Path) -> Iterator[HostDevice]:
    for entry in _listed(sysfs / "bus/usb/devices"):
        if ":" not in entry.name:  # those are the parts of a device
            yield _device(USB, entry)


def _cards(sysfs: Path) -> Iterator[HostDevice]:
    for entry in _listed(sysfs / "class/net"):
        if (entry / "device").exists() or entry.name == "lo":
            yield _device(NET, entry)


def _disks(sysfs: Path) -> Iterator[HostDevice]:
    for entry in _listed(sysfs / "class/block"):
        if (entry / "device").exists() and not (entry / "partition").exists():
            yield _device(STORAGE, entry)


def _listed(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _device(kind: str, entry: Path) -> HostDevice:
    facts: dict[str, str] = {}
    for name in _FILES[kind]:
        with suppress(OSError):
            text = (entry / name).read_text(errors="replace").strip()
            facts[name] = "".join(char for char in text if char.isprintable())
    driver = (entry / "driver").resolve().name if (entry / "driver").exists() else ""
    return HostDevice(kind, entry.name, entry.resolve(), facts, driver)
