"""The USB devices of the node, as the kernel shows them.

/sys/bus/usb/devices/1-1.2/    busnum devnum idVendor idProduct manufacturer product
/dev/bus/usb/001/004           what a program that drives the device opens (usbfs)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

SYSFS = Path("/sys/bus/usb/devices")
_HUB = "09"  # bDeviceClass


class UsbDevice(NamedTuple):
    """A device.  id: VENDOR:PRODUCT, in hexadecimal digits.  label: in its maker's words, or ""."""

    bus: int
    address: int
    id: str
    label: str

    @property
    def path(self) -> Path:
        """Return what is opened to drive it."""
        return Path(f"/dev/bus/usb/{self.bus:03}/{self.address:03}")

    @property
    def place(self) -> str:
        """Return BUS.ADDRESS; it gets another address each time that it is plugged in."""
        return f"{self.bus}.{self.address}"


def devices(sysfs: Path = SYSFS) -> list[UsbDevice]:
    """Return all devices but hubs, by their place; none where the kernel has no USB."""
    found = []
    for directory in sysfs.glob("[0-9]*"):
        if ":" in directory.name or _text(directory, "bDeviceClass") == _HUB:
            continue  # an interface of a device; a hub
        bus, address = _text(directory, "busnum"), _text(directory, "devnum")
        id_ = f"{_text(directory, 'idVendor')}:{_text(directory, 'idProduct')}".lower()
        words = (_text(directory, "manufacturer"), _text(directory, "product"))
        if bus.isdigit() and address.isdigit():
            found.append(UsbDevice(int(bus), int(address), id_, " ".join(filter(None, words))))
    return sorted(found)


def _text(directory: Path, name: str) -> str:
    """Return what a device says of itself: it may say anything, or have gone."""
    try:
        text = (directory / name).read_text(errors="replace")
    except OSError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in text.strip())
