"""The keys of a machine's encrypted disks, from the node's store to QEMU.

They are in no command line and no log: QEMU reads them from a file in memory, or gets them by its
monitor.
"""

from __future__ import annotations

import base64
import os
from contextlib import ExitStack, suppress

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.operations import machinedrives
from pyvz.operations.node import Node
from pyvz.store import diskkeys
from pyvz.vm import image
from pyvz.vm.monitor import Monitor


def of(node: Node, drive: Drive) -> Secret | None:
    """Return the key of a disk, None when it is not encrypted; raises NotFound, ConfigError."""
    return diskkeys.read(node.paths, drive.keyid) if drive.keyid else None


def open_all(node: Node, config: Config, opened: ExitStack) -> tuple[tuple[str, int], ...]:
    """Return the keys that a start needs, by name, in descriptors that OPENED closes."""
    drives = (drive for drive in config.machine.drives if drive.enabled)
    return tuple(each for drive in drives for each in open_one(node, drive, opened))


def open_one(node: Node, drive: Drive, opened: ExitStack) -> tuple[tuple[str, int], ...]:
    """Return the key of one drive by its name, in a descriptor that OPENED closes; or nothing."""
    key = of(node, drive)
    if key is None:
        return ()
    descriptor = image.secret_file(key)
    opened.callback(os.close, descriptor)
    return ((machinedrives.secret_of(drive), descriptor),)


def give(node: Node, monitor: Monitor, drive: Drive) -> None:
    """Give a running QEMU the key of a disk that is to be plugged in."""
    key = of(node, drive)
    if key is None:
        return
    data = base64.b64encode(key.reveal().encode("utf-8", "surrogateescape")).decode()
    words = {"qom-type": "secret", "id": machinedrives.secret_of(drive)}
    take_back(monitor, drive)
    monitor.execute("object-add", words | {"format": "base64", "data": data})


def take_back(monitor: Monitor, drive: Drive) -> None:
    """Have it forget the key; idempotent."""
    if drive.keyid:
        with suppress(VZError):
            monitor.execute("object-del", {"id": machinedrives.secret_of(drive)})
