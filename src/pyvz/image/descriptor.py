"""DiskDescriptor.xml: which images a ploop disk is made of, and its tree of snapshots.

    <Virtuozzo_disk_image>              OpenVZ 6: <Parallels_disk_image Version="1.0">
      <Disk_Parameters>                 Disk_size [Max_delta_size] Cylinders Heads Sectors Padding
      <StorageData>
        [<Volume>]                      Parent SnapshotGUID ReadOnly (ploop-volume)
        <Storage>                       Start End Blocksize [Preallocated] Image(GUID Type File)*
      <Snapshots>                       TopGUID Shot(GUID ParentGUID [Temporary...])*

The values are those of image/disk.py, also found here.
A descriptor may come from anywhere: entities and DTDs are refused, names of images are plain file
names beside the descriptor.  Source: ploop lib/xml.c, lib/di.c.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

from pyvz.errors import StorageError, UsageError
from pyvz.image.disk import (
    BASE_FILE,
    EXPANDED,
    NAME,
    NO_PARENT,
    PREALLOCATED,
    RAW,
    TEMPORARY,
    TOP_GUID,
    Descriptor,
    Image,
    Shot,
    Volume,
    normal_guid,
)
from pyvz.image.file import opened, read_at
from pyvz.image.header import SECTOR, geometry
from pyvz.linux.file import write_atomic

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = [
    "BASE_FILE",
    "EXPANDED",
    "NAME",
    "NO_PARENT",
    "PREALLOCATED",
    "RAW",
    "TOP_GUID",
    "Descriptor",
    "Image",
    "Shot",
    "Volume",
    "load",
    "normal_guid",
    "parse",
    "save",
    "to_xml",
]

ROOTS = ("Virtuozzo_disk_image", "Parallels_disk_image")
_LIMIT = 1 << 20
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}|0[xX][0-9a-fA-F]{1,16}")


# Reading


def load(path: str | Path) -> Descriptor:
    """Read a descriptor; raises FileMissing, StorageError that names the file and what is wrong."""
    with opened(path) as fd:
        raw = read_at(fd, _LIMIT + 1, 0)
    if len(raw) > _LIMIT:
        raise StorageError(f"{path} has more than {_LIMIT} bytes")
    try:
        return parse(raw)
    except StorageError as error:
        raise StorageError(
            f"{path}: {error.message}", details=error.details, hint=error.hint
        ) from error


@functools.lru_cache(maxsize=64)  # one operation asks several times, a tree of 100 takes ms
def parse(raw: bytes) -> Descriptor:
    """Return the descriptor that the bytes of a file hold; raises StorageError."""
    try:
        root: Element = defusedxml.ElementTree.fromstring(raw, forbid_dtd=True)
    except DefusedXmlException as error:
        raise StorageError("it has a DTD or entities, which no disk descriptor has") from error
    except (SyntaxError, ValueError, LookupError) as error:  # ParseError is a SyntaxError
        raise StorageError(f"it is not well-formed XML: {error}") from error
    if root.tag not in ROOTS:
        raise StorageError(f"it is no disk descriptor: its root is <{root.tag[:80]}>")
    try:
        return _descriptor(root)
    except UsageError as error:
        raise StorageError(error.message) from error


def _descriptor(root: Element) -> Descriptor:
    parameters = _child(root, "Disk_Parameters")
    storage = _storage(root)
    sectors = _number(parameters, "Disk_size")
    if _number(storage, "Start", 0) != 0 or _number(storage, "End", sectors) != sectors:
        raise StorageError("the disk is split in parts, or Storage and Disk_size differ")
    images = tuple(
        Image(normal_guid(_text(each, "GUID")), _text(each, "File"))
        for each in storage.findall("Image")
    )
    shots, top = _snapshots(_child(root, "Snapshots"))
    shots = _completed(shots, images)
    return Descriptor(
        disk_size=sectors * SECTOR,
        blocksize=_number(storage, "Blocksize") * SECTOR,
        images=images,
        snapshots=shots,
        top=top or TOP_GUID,
        mode=_mode(storage),
        max_delta_size=_number(parameters, "Max_delta_size", 0) * SECTOR,
        key=parameters.findtext("Encryption/KeyId", ""),
        volume=_volume(root.find("StorageData/Volume")),
    ).checked()


def _storage(root: Element) -> Element:
    found = _child(root, "StorageData").findall("Storage")
    if len(found) != 1:
        raise StorageError("a disk in several parts is not supported")
    return found[0]


def _mode(storage: Element) -> str:
    kinds = {each.findtext("Type", "Compressed").strip() for each in storage.findall("Image")}
    if len(kinds) > 1 or not kinds <= {"Compressed", "Plain"}:
        raise StorageError(f"images of the types {', '.join(sorted(kinds))[:80]} are not supported")
    preallocated = _number(storage, "Preallocated", 0)
    if preallocated > 1 or (preallocated and kinds == {"Plain"}):
        raise StorageError("Preallocated does not go with the type of the images")
    if kinds == {"Plain"}:
        return RAW
    return PREALLOCATED if preallocated else EXPANDED


def _snapshots(element: Element) -> tuple[tuple[Shot, ...], str]:
    shots = []
    for each in element.findall("Shot"):
        temporary = next((name for name in TEMPORARY if each.find(name) is not None), "")
        guid, parent = _text(each, "GUID"), _text(each, "ParentGUID")
        shots.append(Shot(normal_guid(guid), normal_guid(parent), temporary))
    top = element.findtext("TopGUID", "").strip()
    return tuple(shots), normal_guid(top) if top else ""


def _completed(shots: tuple[Shot, ...], images: tuple[Image, ...]) -> tuple[Shot, ...]:
    # Early versions wrote no shot for the top; ploop adds it in validate_disk_descriptor().
    missing = {each.guid for each in images} - {each.guid for each in shots}
    return (*shots, Shot(TOP_GUID)) if missing == {TOP_GUID} else shots


def _volume(element: Element | None) -> Volume | None:
    if element is None:
        return None
    parent = element.findtext("Parent", "").strip()
    snapshot = element.findtext("SnapshotGUID", "").strip()
    return Volume(
        parent, normal_guid(snapshot) if snapshot else "", element.find("ReadOnly") is not None
    )


def _child(element: Element, name: str) -> Element:
    found = element.find(name)
    if found is None:
        raise StorageError(f"<{name}> is missing in <{element.tag}>")
    return found


def _text(element: Element, name: str) -> str:
    text = (_child(element, name).text or "").strip()
    if not text:
        raise StorageError(f"<{name}> is empty")
    return text


def _number(element: Element, name: str, default: int | None = None) -> int:
    if default is not None and element.find(name) is None:
        return default
    text = _text(element, name)
    if not _NUMBER.fullmatch(text):
        raise StorageError(f"<{name}> is not a number: {text[:40]!r}")
    return int(text, 0)


# Writing


def save(path: str | Path, d: Descriptor) -> None:
    """Write a descriptor, whole or not at all; raises StorageError, NoSpace, OSError."""
    data = to_xml(d)
    mode = 0o644
    path = Path(path)
    if path.is_symlink() or path.exists():
        with opened(path) as fd:  # refuses links and devices
            mode = os.fstat(fd).st_mode & 0o777
    write_atomic(path, data, mode)


def to_xml(d: Descriptor) -> bytes:
    """Return the file, laid out as ploop writes it."""
    d = d.with_constant_top().checked()
    sectors = d.disk_size // SECTOR
    heads, cylinders, _ = geometry(sectors)
    parameters: Mapping[str, object] = {
        "Disk_size": sectors,
        **({"Max_delta_size": d.max_delta_size // SECTOR} if d.max_delta_size else {}),
        "Cylinders": cylinders,
        "Heads": heads,
        "Sectors": sectors // (cylinders * heads),
        "Padding": 0,
        **({"Encryption": {"KeyId": d.key}} if d.key else {}),
    }
    kind = "Plain" if d.mode == RAW else "Compressed"
    storage: Mapping[str, object] = {
        "Start": 0,
        "End": sectors,
        "Blocksize": d.blocksize // SECTOR,
        **({"Preallocated": 1} if d.mode == PREALLOCATED else {}),
        "Image": [{"GUID": each.guid, "Type": kind, "File": each.file} for each in d.images],
    }
    shots = [
        {"GUID": each.guid, "ParentGUID": each.parent}
        | ({each.temporary: ""} if each.temporary else {})
        for each in d.snapshots
    ]
    tree = {
        "Virtuozzo_disk_image": {
            "Disk_Parameters": parameters,
            "StorageData": {**_volume_values(d.volume), "Storage": storage},
            "Snapshots": {"TopGUID": d.top, "Shot": shots},
        }
    }
    lines = ['<?xml version="1.0"?>']
    _render(tree, 0, lines)
    return ("\n".join(lines) + "\n").encode()


def _volume_values(volume: Volume | None) -> dict[str, object]:
    if volume is None:
        return {}
    values: dict[str, object] = {}
    if volume.parent:
        values["Parent"] = volume.parent
    if volume.snapshot:
        values["SnapshotGUID"] = volume.snapshot
    if volume.readonly:
        values["ReadOnly"] = 1
    return {"Volume": values}


def _render(values: Mapping[str, object], depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}<{name}>")
                _render(each, depth + 1, lines)
                lines.append(f"{indent}</{name}>")
            else:
                lines.append(f"{indent}<{name}>{_escaped(str(each))}</{name}>")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
