"""What the disks of a virtual machine are and have moved, as libvirt's clients ask for it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pyvz.errors import VZError
from pyvz.gateway import failure, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import STRING, UINT, ULLONG, Typed
from pyvz.model.grammar_machine import Drive
from pyvz.operations.node import Node
from pyvz.units import KIB

_JOBS: Final = {"stream": 1, "mirror": 2, "backup": 5}
_BLOCK: Final = 512  # bytes of st_blocks


class Moved(NamedTuple):
    """Requests and bytes of a drive since the machine was started."""

    reads: int = 0
    read: int = 0
    writes: int = 0
    written: int = 0


def find(domain: Domain, path: str) -> Drive:
    """Return the drive with that name on the bus, name of ours, or image; raises Failure (8)."""
    for drive, name in machinexml.drives(domain):
        image = machinexml.source(domain, drive)
        if path in (name, drive.name) or (image is not None and path == os.fspath(image)):
            return drive
    raise Failure(failure.INVALID_ARGUMENT, f"{domain.env.name} has no disk '{path}'")


def moved(node: Node, domain: Domain) -> dict[str, Moved]:
    """Return what each drive has moved, by our names; nothing when QEMU does not answer."""
    found: dict[str, Moved] = {}
    if not domain.running:
        return found
    with suppress(VZError, LookupError, TypeError, ValueError):
        for each in node.machines.monitor(domain.env.uuid).execute("query-blockstats"):
            found[str(each.get("node-name", ""))] = _moved(each["stats"])
    return found


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
            words = ("rd.reqs", "rd.bytes", "wr.reqs", "wr.bytes")
            found += [
                Typed(f"block.{number}.{word}", ULLONG, value)
                for word, value in zip(words, one, strict=True)
            ]
    return found


def size(domain: Domain, path: str) -> dict[str, int]:
    """Return how large a disk is for the guest, and what its image takes; raises Failure."""
    drive = find(domain, path)
    image = machinexml.source(domain, drive)
    if image is None:
        return {"allocation": 0, "capacity": 0, "physical": 0}
    try:
        status = image.stat()
    except OSError as error:
        raise Failure(failure.SYSTEM, f"{image}: {error.strerror}") from error
    return {
        "allocation": status.st_blocks * _BLOCK,
        "capacity": drive.size * KIB or status.st_size,
        "physical": status.st_size,
    }


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


def _moved(stats: dict[str, Any]) -> Moved:
    words = ("rd_operations", "rd_bytes", "wr_operations", "wr_bytes")
    return Moved(*(int(stats[word]) for word in words))
