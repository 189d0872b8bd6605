"""Checkpoints and backups as libvirt's XML (formatcheckpoint, formatbackup), read and written.

    <domaincheckpoint> <name/> <description/> <disks><disk name='sda' checkpoint='bitmap|no'/>
    <domainbackup mode='push'> <incremental>NAME</incremental>
      <disks><disk name='sda' type='file'><target file='PATH'/><driver type='qcow2'/></disk>

A disk is named as on its bus, or by its image.  Without <disks> every disk takes part in a
checkpoint; a backup wants to be told where each of its disks goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure, machineblock, machinexml
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.gateway.notes import parsed
from pyvz.operations.machinepush import Copy
from pyvz.store.checkpoints import Checkpoint
from pyvz.vm.moment import Bitmap

_CHECKPOINT: Final = frozenset({"name", "description", "parent", "creationTime", "disks", "domain"})
_BACKUP: Final = frozenset({"incremental", "disks"})
_FORMATS: Final = ("qcow2", "raw")


def read(text: str, found: Domain) -> Checkpoint:
    """Return the checkpoint that is asked for; raises Failure.  Without a name it is the time."""
    top = _top(text, "domaincheckpoint", _CHECKPOINT)
    now = int(time.time())
    name = top.findtext("name") or str(now)
    rows = top.find("disks")
    if rows is None:
        disks = [drive.name for drive, _ in machinexml.drives(found) if drive.is_disk]
    else:
        disks = list(_bitmaps(found, rows, name))
    return Checkpoint(name, now, tuple(disks), top.findtext("description") or "")


def _bitmaps(found: Domain, rows: Element, name: str) -> Iterator[str]:
    for row in _disks(rows, frozenset({"name", "checkpoint", "bitmap", "size"})):
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


def read_backup(text: str, found: Domain) -> tuple[Copy, ...]:
    """Return the copies that a backup consists of; raises Failure."""
    top = _top(text, "domainbackup", _BACKUP)
    if (mode := top.get("mode") or "push") != "push":
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"A backup in {mode} mode is not supported: in push mode, to files of this node, it is",
        )
    since, rows = top.findtext("incremental") or "", top.find("disks")
    copies = tuple(_copies(found, rows, since)) if rows is not None else ()
    if not copies:
        raise Failure(
            failure.XML,
            "The backup does not say where to: <disks><disk name='sda' type='file'>"
            "<target file='/path'/></disk></disks>",
        )
    if len({copy.disk for copy in copies}) < len(copies):
        raise Failure(failure.XML, "The backup names a disk twice")
    return copies


def _copies(found: Domain, rows: Element, since: str) -> Iterator[Copy]:
    known = frozenset({"name", "backup", "type", "backupmode", "incremental", "index"})
    for row in _disks(rows, known, frozenset({"target", "driver"})):
        if (taken := row.get("backup") or "yes") not in {"yes", "no"}:
            raise Failure(failure.XML, f"<disk backup='{taken}'>: yes or no")
        if taken == "yes":
            yield _copy(found, row, since)


def _copy(found: Domain, row: Element, since: str) -> Copy:
    target, driver = row.find("target"), row.find("driver")
    path = (target.get("file") or "") if target is not None else ""
    if row.get("type", "file") != "file" or not path.startswith("/") or not path.isprintable():
        raise Failure(
            failure.UNSUPPORTED, f"The disk {row.get('name')} has to go to a file: type='file' and"
            " <target file='/path'/>",
        )  # fmt: skip
    form = (driver.get("type") if driver is not None else None) or "qcow2"
    if form not in _FORMATS:
        raise Failure(failure.UNSUPPORTED, f"An image of the format '{form}': qcow2 or raw")
    since = row.get("incremental") or since
    mode = row.get("backupmode") or ("incremental" if since else "full")
    if mode not in {"full", "incremental"} or (mode == "incremental" and not since):
        raise Failure(failure.XML, f"<disk backupmode='{mode}'>: full, or incremental to something")
    drive = machineblock.find(found, row.get("name") or "")
    if not drive.is_disk:
        raise Failure(failure.UNSUPPORTED, f"{row.get('name')} is no disk: it cannot be backed up")
    return Copy(drive.name, Path(path), form, since if mode == "incremental" else "")


def written_backup(found: Domain, copies: tuple[Copy, ...]) -> str:
    """Return the description of the backup that is under way."""
    top = Element("domainbackup", mode="push")
    rows = SubElement(top, "disks")
    going = {copy.disk: copy for copy in copies}
    for drive, name in machinexml.drives(found):
        copy = going.get(drive.name)
        if copy is None:
            SubElement(rows, "disk", name=name, backup="no")
            continue
        row = SubElement(rows, "disk", name=name, backup="yes", type="file")
        row.set("backupmode", "incremental" if copy.since else "full")
        if copy.since:
            row.set("incremental", copy.since)
        SubElement(row, "driver", type=copy.format)
        SubElement(row, "target", file=str(copy.path))
    return text_of(top)


def _top(text: str, tag: str, known: frozenset[str]) -> Element:
    top = parsed(text, "description")
    if top.tag != tag:
        raise Failure(failure.XML, f"<{top.tag}> is no <{tag}>")
    for each in top:
        if each.tag not in known:
            raise Failure(failure.UNSUPPORTED, f"The element <{each.tag}> of <{tag}>")
    return top


def _disks(
    rows: Element, attributes: frozenset[str], parts: frozenset[str] = frozenset()
) -> Iterator[Element]:
    """Yield each <disk>; raises Failure for what is not understood in it."""
    for row in rows:
        unknown = [name for name in row.attrib if name not in attributes]
        unknown += [each.tag for each in row if each.tag not in parts]
        if row.tag != "disk" or unknown:
            raise Failure(failure.UNSUPPORTED, f"<{row.tag}> with {', '.join(unknown)}")
        yield row
