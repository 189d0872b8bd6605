"""OVF: the description of a virtual appliance, read into values; hostile XML.

Of several machines only the first is read; what we have no place for is left out.
Source: DMTF DSP0243 (OVF 2.1), sections 7 to 9; resource types of DSP1041 (CIM).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from pyvz.errors import StorageError, Unsupported

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_DISKS = 6
_CPU, _MEMORY, _IDE, _SCSI, _CARD, _DISK, _SATA = "3", "4", "5", "6", "10", "17", "20"
_BUSES = {_IDE: "ide", _SCSI: "scsi", _SATA: "sata"}
_UNIT = re.compile(r"byte(?:s)?\s*\*\s*2\s*\^\s*(\d{1,2})")
_WORDS = {"megabytes": 1, "mb": 1, "gigabytes": 1 << 10, "gb": 1 << 10}
_MAX_CPUS, _MAX_MEMORY = 1024, 16 << 20  # MiB


class Disk(NamedTuple):
    """A disk.  file: its image.  bus: of its controller: ide, scsi, sata."""

    file: str
    bus: str = "scsi"


class Appliance(NamedTuple):
    """A machine.  memory: MiB; 0 and "": not said.  cards: how many network cards it has."""

    name: str = ""
    cpus: int = 0
    memory: int = 0
    efi: bool = False
    disks: tuple[Disk, ...] = ()
    cards: int = 0


def parse(text: str) -> Appliance:
    """Return the first machine; raises StorageError (not OVF), Unsupported."""
    try:
        root = defusedxml.ElementTree.fromstring(text, forbid_dtd=True)
    except (DefusedXmlException, SyntaxError, ValueError) as error:
        raise StorageError(f"The description of the appliance is no OVF: {error}") from error
    machine = next(_all(root, "VirtualSystem"), None)
    if _name(root) != "Envelope" or machine is None:
        raise StorageError("The description of the appliance names no virtual machine")
    files = _files(root)
    items = list(_all(machine, "Item")) + list(_all(machine, "StorageItem"))
    buses = {_child(item, "InstanceID"): _BUSES.get(_child(item, "ResourceType")) for item in items}
    made = Appliance(name=_child(machine, "Name") or _attribute(machine, "id"), efi=_efi(machine))
    disks: list[Disk] = []
    for item in items:
        kind = _child(item, "ResourceType")
        if kind == _CPU:
            made = made._replace(cpus=min(_amount(item), _MAX_CPUS))
        elif kind == _MEMORY:
            made = made._replace(memory=_memory(item))
        elif kind in {_CARD}:
            made = made._replace(cards=made.cards + 1)
        elif kind == _DISK:
            resource = _child(item, "HostResource").rpartition("/")[2]
            if resource not in files:
                raise StorageError("The description of the appliance names a disk that is missing")
            disks.append(Disk(files[resource], buses.get(_child(item, "Parent")) or "scsi"))
    if len(disks) > MAX_DISKS:
        raise Unsupported(f"The appliance has more than {MAX_DISKS} disks")
    return made._replace(disks=tuple(disks))


def _files(root: Element) -> dict[str, str]:
    """Return {diskId or file id: name of the file}."""
    found: dict[str, str] = {}
    for file in _all(root, "File"):
        if _attribute(file, "compression") not in {"", "identity"}:
            raise Unsupported(
                "The disks of the appliance are compressed", hint="Unpack them, then import."
            )
        found[_attribute(file, "id")] = _attribute(file, "href")
    names = dict(found)
    for disk in _all(root, "Disk"):
        reference = _attribute(disk, "fileRef")
        if reference in found:
            if _attribute(disk, "parentRef"):
                raise Unsupported("A disk of the appliance stands on another one")
            names[_attribute(disk, "diskId")] = found[reference]
    return names


def _efi(machine: Element) -> bool:
    return any(
        _attribute(each, "key") == "firmware" and _attribute(each, "value").lower() == "efi"
        for each in _all(machine, "Config")
    )


def _memory(item: Element) -> int:
    units = _child(item, "AllocationUnits").strip().lower()
    if seen := _UNIT.fullmatch(units):
        return min((_amount(item) << int(seen[1])) >> 20, _MAX_MEMORY)
    return min(_amount(item) * _WORDS.get(units, 1), _MAX_MEMORY)


def _amount(item: Element) -> int:
    text = _child(item, "VirtualQuantity").strip()
    if not re.fullmatch(r"\d{1,12}", text):
        raise StorageError("The description of the appliance has an amount that is no number")
    return int(text)


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _all(element: Element, name: str) -> Iterator[Element]:
    return (each for each in element.iter() if _name(each) == name)


def _child(element: Element, name: str) -> str:
    return next((each.text or "" for each in element if _name(each) == name), "")


def _attribute(element: Element, name: str) -> str:
    return next(
        (value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), ""
    )
