"""PCI devices taken from the node's drivers, for a program to drive them by VFIO, and given back.

/sys/bus/pci/devices/ADDRESS/    driver  driver_override  iommu_group/devices/ADDRESS...
/dev/vfio/GROUP                  what the program opens, one for all devices of an IOMMU group

The devices of a group can reach each other's memory past the IOMMU: they are taken all or none.
Source: Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-bus-pci of the kernel.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyvz.errors import CommandFailed, NotFound, StartError, Timeout, Unsupported
from pyvz.linux.run import run

SYSFS: Final = Path("/sys/bus/pci")
DEV: Final = Path("/dev/vfio")
DRIVER: Final = "vfio-pci"
_BRIDGE: Final = "0x06"  # how the class of bridges begins; they are of a group, but not taken
_LOAD = 60.0  # seconds for modprobe
_APPEAR = 30.0  # seconds for udev to make the node of a group


def device(address: str, sysfs: Path = SYSFS) -> Path:
    """Return the directory of a device; raises NotFound."""
    found = sysfs / "devices" / address
    if not found.exists():
        raise NotFound(f"This node has no PCI device {address}", hint="prlsrvctl info lists them.")
    return found


def is_bridge(address: str, sysfs: Path = SYSFS) -> bool:
    """Return whether it is a part of the node's board, behind which others are."""
    return (device(address, sysfs) / "class").read_text().startswith(_BRIDGE)


def driver(address: str, sysfs: Path = SYSFS) -> str:
    """Return the name of its driver, "" when it has none."""
    link = device(address, sysfs) / "driver"
    return link.resolve().name if link.exists() else ""


def group(address: str, sysfs: Path = SYSFS) -> str:
    """Return the number of its IOMMU group; raises Unsupported."""
    link = device(address, sysfs) / "iommu_group"
    if not link.exists():
        raise Unsupported(
            f"The PCI device {address} cannot be given away: this node uses no IOMMU",
            hint="Turn it on in the firmware (VT-d, AMD-Vi); Intel's needs intel_iommu=on in the"
            " kernel's command line, too.",
        )
    return link.resolve().name


def members(address: str, sysfs: Path = SYSFS) -> list[str]:
    """Return all devices of its group but bridges; raises Unsupported."""
    group(address, sysfs)
    entries = (device(address, sysfs) / "iommu_group/devices").iterdir()
    return sorted(each.name for each in entries if not is_bridge(each.name, sysfs))


def load() -> None:
    """See to it that the kernel has the driver; raises Unsupported."""
    if (SYSFS / "drivers" / DRIVER).exists():
        return
    try:
        run(["modprobe", DRIVER], timeout=_LOAD)
    except (CommandFailed, Timeout) as error:
        raise Unsupported(f"This kernel has no {DRIVER}", details=str(error)) from error


def take(address: str, sysfs: Path = SYSFS) -> None:
    """Take a device from its driver, for vfio-pci; raises StartError."""
    place = device(address, sysfs)
    try:
        (place / "driver_override").write_text(DRIVER)
        if driver(address, sysfs) not in {"", DRIVER}:
            (place / "driver/unbind").write_text(address)
        if driver(address, sysfs) != DRIVER:
            (sysfs / "drivers_probe").write_text(address)
    except OSError as error:
        raise StartError(
            f"The PCI device {address} could not be taken from its driver: {error.strerror}"
        ) from error


def give_back(address: str, former: str, sysfs: Path = SYSFS) -> None:
    """Give a device back to its FORMER driver, "": to whichever wants it; idempotent."""
    with suppress(OSError, NotFound):
        place = device(address, sysfs)
        (place / "driver_override").write_text("\n")
        if driver(address, sysfs) == DRIVER:
            (place / "driver/unbind").write_text(address)
        if former and not driver(address, sysfs):
            with suppress(OSError):  # it is gone, or wants it no more
                (sysfs / "drivers" / former / "bind").write_text(address)
        if not driver(address, sysfs):
            (sysfs / "drivers_probe").write_text(address)


def admit(number: str, uid: int) -> tuple[str, str]:
    """Let the user UID open the group; returns the nodes that its program opens.

    Raises StartError when the node of the group does not appear.
    """
    path = DEV / number
    deadline = time.monotonic() + _APPEAR
    while not path.exists():
        if time.monotonic() > deadline:
            raise StartError(f"{path} does not appear")
        time.sleep(0.05)
    os.chown(path, uid, 0)
    path.chmod(0o600)
    (DEV / "vfio").chmod(0o666)  # as udev has it: it leads to nothing without a group
    return str(DEV / "vfio"), str(path)


def shut(number: str) -> None:
    """Let nobody but root open a group any more; idempotent."""
    with suppress(FileNotFoundError):
        os.chown(DEV / number, 0, 0)
