"""What the disks of a virtual machine are and have moved, as libvirt's clients ask for it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyvz.errors import VZError
from pyvz.gateway import failure, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import STRING, UINT, ULLONG, Typed
from pyvz.model.grammar_machine import Drive
from pyvz.operations import machinedrives
from pyvz.operations.node import Node
from pyvz.units import KIB
from pyvz.vm import blockfigures, image
from pyvz.vm.blockfigures import Moved

_JOBS: Final = {"stream": 1, "mirror": 2, "backup": 5}
_BLOCK: Final = 512  # bytes of st_blocks


WORDS: Final = (
    *("rd_operations", "rd_bytes", "rd_total_times"),
    *("wr_operations", "wr_bytes", "wr_total_times"),
    *("flush_operations", "flush_total_times"),
)  # of libvirt for the fields of Moved
_IN_BULK: Final = (
    *("rd.reqs", "rd.bytes", "rd.times", "wr.reqs", "wr.bytes", "wr.times"),
    *("fl.reqs", "fl.times"),
)


def find(domain: Domain, path: str) -> Drive:
    """Return the drive with that name on the bus, name of ours, or image; raises Failure (8)."""
    for drive, name in machinexml.drives(domain):
        place = machinexml.source(domain, drive)
        if path in (name, drive.name) or (place is not None and path == os.fspath(place)):
            return drive
    raise Failure(failure.INVALID_ARGUMENT, f"{domain.env.name} has no disk '{path}'")


def moved(node: Node, domain: Domain) -> dict[str, Moved]:
    """Return what each drive has moved, by our names; nothing when QEMU does not answer."""
    if not domain.running:
        return {}
    with suppress(VZError):
        return blockfigures.moved(node.machines.monitor(domain.env.uuid))
    return {}


def of_one(node: Node, domain: Domain, path: str) -> Moved:
    """Return what one drive has moved, or all together for ""; raises Failure (8)."""
    drives = moved(node, domain)
    if path:
        return drives.get(find(domain, path).name, Moved())
    return Moved(*(sum(column) for column in zip(*drives.values(), strict=True)))


def figures(node: Node, domain: Domain) -> list[Typed]:
    """Return the figures of all drives for the statistics in bulk."""
    drives, counters = list(machinexml.drives(domain)), moved(node, domain)
    found = [Typed("block.count", UINT, len(drives))]
    for number, (drive, name) in enumerate(drives):
        path = machinexml.source(domain, drive)
        found.append(Typed(f"block.{number}.name", STRING, name))
        if path is not None:
            found.append(Typed(f"block.{number}.path", STRING, os.fspath(path)))
        one = counters.get(drive.name)
        if one is not None:
            found += [
                Typed(f"block.{number}.{word}", ULLONG, value)
                for word, value in zip(_IN_BULK, one, strict=True)
            ]
        with suppress(VZError):
            sizes = _sizes(drive, path) if path is not None else {}
            found += [Typed(f"block.{number}.{word}", ULLONG, sizes[word]) for word in sizes]
    return found


def size(domain: Domain, path: str) -> dict[str, int]:
    """Return how large a disk is for the guest, and what its image takes; raises Failure."""
    drive = find(domain, path)
    return _sizes(drive, machinexml.source(domain, drive))


def _sizes(drive: Drive, path: Path | None) -> dict[str, int]:
    if path is None:
        return {"allocation": 0, "capacity": 0, "physical": 0}
    try:
        status = machinedrives.file_of(drive, path).stat()
    except OSError as error:
        raise Failure(failure.SYSTEM, f"{path}: {error.strerror}") from error
    capacity = drive.size * KIB or image.look(path).size
    if stat.S_ISBLK(status.st_mode):
        return {"allocation": capacity, "capacity": capacity, "physical": capacity}
    allocation = status.st_blocks * _BLOCK
    return {"allocation": allocation, "capacity": capacity, "physical": status.st_size}


def job(node: Node, domain: Domain, path: str) -> dict[str, int] | None:
    """Return the job on a disk: libvirt's type, bytes per second, done and to do; None without.

    Raises Failure (8), NotRunning.
    """
    name = find(domain, path).name
    for each in node.machines.monitor(domain.env.uuid).execute("query-block-jobs"):
        if str(each["device"]).rpartition("-")[2] == name and each["type"] in _JOBS:
            done, total = int(each["offset"]), int(each["len"])
            speed = int(each["speed"])
            return {"type": _JOBS[str(each["type"])], "bandwidth": speed, "cur": done, "end": total}
    return None
