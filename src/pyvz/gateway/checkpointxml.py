"""Checkpoints as libvirt's XML (formatcheckpoint), read and written.

    <domaincheckpoint> <name/> <description/> <disks><disk name='sda' checkpoint='bitmap|no'/>

A disk is named as on its bus, or by its image.  Without <disks> every disk takes part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure, machineblock, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.store.checkpoints import Checkpoint
from pyvz.vm.moment import Bitmap

_CHECKPOINT: Final = frozenset({"name", "description", "parent", "creationTime", "disks", "domain"})


def read(text: str, found: Domain) -> Checkpoint:
    """Return the checkpoint that is asked for; raises Failure.  Without a name it is the time."""
    top = top_of(text, "domaincheckpoint", _CHECKPOINT)
    now = int(time.time())
    name = top.findtext("name") or str(now)
    rows = top.find("disks")
    if rows is None:
        disks = [drive.name for drive, _ in machinexml.drives(found) if drive.is_disk]
    else:
        disks = list(_bitmaps(found, rows, name))
    return Checkpoint(name, now, tuple(disks), top.findtext("description") or "")


def _bitmaps(found: Domain, rows: Element, name: str) -> Iterator[str]:
    for row in disks_of(rows, frozenset({"name", "checkpoint", "bitmap", "size"})):
        kind = row.get("checkpoint") or "bitmap"
        if kind not in {"bitmap", "no"}:
            raise Failure(failure.XML, f"<disk checkpoint='{kind}'>: bitmap or no")
        if row.get("bitmap") not in (None, name):
            raise Failure(failure.UNSUPPORTED, "A bitmap is called as its checkpoint")
        if kind == "bitmap":
            yield machineblock.find(found, row.get("name") or "").name


def written(
    found: Domain, item: Checkpoint, parent: Checkpoint | None, sizes: Mapping[str, Bitmap] | None
) -> Element:
    """Return the description of a checkpoint; SIZES: what its bitmaps tell, where it is asked."""
    top = Element("domaincheckpoint")
    SubElement(top, "name").text = item.name
    if item.description:
        SubElement(top, "description").text = item.description
    if parent is not None:
        SubElement(SubElement(top, "parent"), "name").text = parent.name
    SubElement(top, "creationTime").text = str(item.created)
    rows = SubElement(top, "disks")
    for drive, name in machinexml.drives(found):
        if drive.is_disk:
            kind = "bitmap" if drive.name in item.disks else "no"
            row = SubElement(rows, "disk", name=name, checkpoint=kind)
            if kind == "bitmap":
                row.set("bitmap", item.name)
            if sizes is not None and drive.name in sizes:
                row.set("size", str(sizes[drive.name].written))
    return top


def top_of(text: str, tag: str, known: frozenset[str]) -> Element:
    """Return the element TAG that TEXT is; raises Failure for what is in it and not KNOWN."""
    top = parsed(text, "description")
    if top.tag != tag:
        raise Failure(failure.XML, f"<{top.tag}> is no <{tag}>")
    for each in top:
        if each.tag not in known:
            raise Failure(failure.UNSUPPORTED, f"The element <{each.tag}> of <{tag}>")
    return top


def disks_of(
    rows: Element, attributes: frozenset[str], parts: frozenset[str] = frozenset()
) -> Iterator[Element]:
    """Yield each <disk>; raises Failure for what is not understood in it."""
    for row in rows:
        unknown = [name for name in row.attrib if name not in attributes]
        unknown += [each.tag for each in row if each.tag not in parts]
        if row.tag != "disk" or unknown:
            raise Failure(failure.UNSUPPORTED, f"<{row.tag}> with {', '.join(unknown)}")
        yield row
