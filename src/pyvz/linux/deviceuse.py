"""What the node does with a device that is to be given away: disks in use, links that are up.

The kernel knows: whoever has mounted a disk, swaps to it, or built another device on it holds it
exclusively, so that opening it with O_EXCL fails (open(2)).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SYSFS = Path("/sys")
DEV = Path("/dev")
_UP = 1  # IFF_UP
_WAY = re.compile(r"(nvme\d+)c\d+(n\d+)")


def uses(device: Path, sysfs: Path = SYSFS, dev: Path = DEV) -> list[str]:
    """Return what is in use of the DEVICE, a directory of sysfs, in words; [] when nothing is."""
    disks = (name for name in _below(device, sysfs / "class/block") if _held(dev / name))
    links = (name for name in _below(device, sysfs / "class/net") if _up(sysfs, name))
    found = [
        *(f"the disk {name} is in use" for name in disks),
        *(f"{name} is up" for name in links),
    ]
    with suppress(OSError):
        if not any((device / "net").iterdir()):  # each network namespace sees its own
            found.append("its link is in a network namespace")
    return found


def _below(device: Path, listed: Path) -> Iterator[str]:
    """Yield the names of those that are parts of the device."""
    place = device.resolve()
    with suppress(FileNotFoundError):
        for entry in sorted(listed.iterdir()):
            if place in entry.resolve().parents:
                yield entry.name


def _held(path: Path) -> bool:
    # Of a name that has a slash (cciss!c0d0); of one way to an NVMe disk that has several.
    node = path.parent / _WAY.sub(r"\1\2", path.name).replace("!", "/")
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _up(sysfs: Path, name: str) -> bool:
    link = sysfs / "class/net" / name
    with suppress(OSError, ValueError):
        return bool(int((link / "flags").read_text(), 16) & _UP) or (link / "master").exists()
    return False
