"""The drives of a machine beside those of its description: which is which, and what differs.

A disk is known by its image, a CD drive by its name on the bus, else by its place among the CD
drives.  The image of a disk that is taken away stays where it is.  One that is added may come
later than the disk, as it does when virt-clone describes a machine before it copies its images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.gateway import failure, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.machinedefine import Disk
from pyvz.model.environment import Kind
from pyvz.model.grammar_machine import Drive
from pyvz.operations import machinedrives
from pyvz.storage import bundle
from pyvz.vm import image

Options = list[tuple[str, str | None]]


class Matched(NamedTuple):
    """Drives that stay, with what is wanted of them; those that come, and those that go."""

    kept: tuple[tuple[Drive, Disk], ...]
    added: tuple[Disk, ...]
    removed: tuple[Drive, ...]


def matched(present: Domain, wanted: Sequence[Disk]) -> Matched:
    """Return which drive of a machine is which of those wanted.

    A disk that is described twice is one: virt-manager describes again what it has just attached.
    """
    drives = [drive for drive, _ in machinexml.drives(present)]
    pairs = _disks(present, [each for each in drives if each.is_disk], wanted)
    pairs += _trays([each for each in drives if not each.is_disk], wanted)
    staying = {drive.name for drive, _ in pairs if drive is not None}
    return Matched(
        kept=tuple((drive, disk) for drive, disk in pairs if drive is not None),
        added=tuple(disk for drive, disk in pairs if drive is None),
        removed=tuple(each for each in drives if each.name not in staying),
    )


def differences(present: Domain, wanted: Sequence[Disk]) -> list[Options]:
    """Return what makes the drives of a machine those that are wanted; raises Failure."""
    found = matched(present, wanted)
    for disk in found.added:
        check(disk, present.env.home)
    removals: list[Options] = [[("device-del", each.name)] for each in reversed(found.removed)]
    changes = [_changed(present, drive, disk) for drive, disk in found.kept]
    return [*removals, *filter(None, changes), *map(addition, found.added)]


def addition(disk: Disk) -> Options:
    """Return what adds a drive."""
    found: Options = [("device-add", "cdrom" if disk.cdrom else "hdd"), ("iface", disk.place)]
    if disk.source:
        found.append(("device" if disk.block else "image", disk.source))
    if _comes_later(disk):
        found.append(("await-image", disk.format or "raw"))
    if disk.serial:
        found.append(("serial", disk.serial))
    return found


def disc(present: Domain, slot: Drive, tray: Disk) -> Options:
    """Return what changes the disc in a CD drive; nothing where it is in already."""
    inside = machinexml.source(present, slot)
    if not tray.source:
        return [("device-disconnect", slot.name)] if inside is not None else []
    if inside is not None and os.fspath(inside) == tray.source:
        return []
    check(tray)
    return [("device-set", slot.name), ("device" if tray.block else "image", tray.source)]


def check(disk: Disk, home: Path | None = None) -> None:
    """Raise what speaks against an image; where no format is said, it is what its header says.

    That asks for no trust: a header that names another file is refused, whatever it is read as.
    HOME: of the machine; the home of another one is no place for an image to come.
    """
    if not disk.source:
        return
    if _comes_later(disk):
        check_place(Path(disk.source).parent, home)
        return
    path = Path(disk.source)
    if disk.format == machinedrives.BUNDLE or (not disk.format and bundle.is_one(path)):
        bundle.find(path)
        return
    found = image.look(path)
    guessed = "qcow2" if found.format == "qcow2" else "raw"
    image.check(found, path, "raw" if disk.cdrom else disk.format or guessed)


def check_place(directory: Path, home: Path | None = None) -> None:
    """Raise Failure (84) for the home of another environment, with which an image would go."""
    if directory != home and any((directory / kind.conf_name).exists() for kind in Kind):
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"{directory} is the home of an environment: what is made in it goes when that is"
            " deleted. Choose another place (virt-clone --file), or copy with prlctl clone.",
        )


def _comes_later(disk: Disk) -> bool:
    return bool(disk.source) and not disk.cdrom and not os.path.lexists(disk.source)


def _disks(
    present: Domain, drives: Sequence[Drive], wanted: Sequence[Disk]
) -> list[tuple[Drive | None, Disk]]:
    places = {machinexml.source(present, each): each for each in drives}
    found: dict[str, tuple[Drive | None, Disk]] = {}
    for disk in wanted:
        if not disk.cdrom and disk.source not in found:
            found[disk.source] = (places.get(Path(disk.source)), disk)
    return list(found.values())


def _trays(slots: Sequence[Drive], wanted: Sequence[Disk]) -> list[tuple[Drive | None, Disk]]:
    trays = [each for each in wanted if each.cdrom]
    names = {each.target: each for each in trays if each.target}
    found: list[tuple[Drive | None, Disk]] = [
        (slot, names.pop(name)) for slot in slots if (name := machinexml.target(slot)) in names
    ]
    taken = [each for _, each in found]
    free = [slot for slot in slots if all(slot is not other for other, _ in found)]
    rest = [each for each in trays if all(each is not other for other in taken)]
    found += [(free[n] if n < len(free) else None, each) for n, each in enumerate(rest)]
    return found


def _changed(present: Domain, drive: Drive, disk: Disk) -> Options:
    """Return what changes a drive that stays: its bus, its number, the disc in it."""
    if drive.is_disk and disk.format and disk.format != drive.format:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The image of {drive.name} is {drive.format} and stays so; {disk.format} is another"
            " image: remove the disk, then add that",
        )
    hardware: Options = []
    if disk.bus and disk.bus != drive.iface:
        hardware.append(("iface", disk.bus))
    if disk.serial != drive.serial:
        hardware.append(("serial", disk.serial))
    medium = [] if drive.is_disk else disc(present, drive, disk)
    if not hardware or (medium and medium[0][0] != "device-set"):
        return medium
    return [("device-set", drive.name), *hardware, *medium[1:]]
