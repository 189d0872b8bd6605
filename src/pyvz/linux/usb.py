"""The USB devices of the node, as the kernel shows them.

/sys/bus/usb/devices/1-1.2/        busnum devnum idVendor idProduct manufacturer product
/sys/bus/usb/devices/1-1.2:1.0/    a part (interface) of it; driver: who drives that
/dev/bus/usb/001/004               what a program that drives the device opens (usbfs)
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SYSFS = Path("/sys/bus/usb/devices")
USBFS = "usbfs"  # the driver of what a program drives
_HUB = "09"  # bDeviceClass


class UsbDevice(NamedTuple):
    """A device.  id: VENDOR:PRODUCT, in hexadecimal digits.  label: in its maker's words, or "".

    sysfs: its directory.
    """

    bus: int
    address: int
    id: str
    label: str
    sysfs: Path = SYSFS

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
            label = " ".join(filter(None, words))
            found.append(UsbDevice(int(bus), int(address), id_, label, directory))
    return sorted(found)


def drivers(device: UsbDevice) -> dict[str, str]:
    """Return who drives each part of a device: {part: driver}, "" where nobody does."""
    parts = device.sysfs.parent.glob(f"{device.sysfs.name}:*")
    links = {part.name: part / "driver" for part in parts}
    return {name: link.resolve().name if link.exists() else "" for name, link in links.items()}


def give_back(device: UsbDevice) -> None:
    """Let the node's drivers have what nobody drives: a program that was killed gives nothing back.

    Source: Documentation/ABI/testing/sysfs-bus (drivers_probe).
    """
    for part, driver in drivers(device).items():
        if not driver:
            with suppress(OSError):  # no driver wants it, or it has gone
                (device.sysfs.parent.parent / "drivers_probe").write_text(part)


def _text(directory: Path, name: str) -> str:
    """Return what a device says of itself: it may say anything, or have gone."""
    try:
        text = (directory / name).read_text(errors="replace")
    except OSError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in text.strip())
