"""Backups as libvirt's XML (formatbackup), read and written.

    <domainbackup mode='push'> <incremental>NAME</incremental>
      <disks><disk name='sda' type='file'><target file='PATH'/><driver type='qcow2'/></disk>
    <domainbackup mode='pull'> <incremental>NAME</incremental>
      <server transport='unix' socket='PATH'/>  or  <server name='ADDRESS' port='10809'/>
      <disks><disk name='sda' exportname='NAME' exportbitmap='NAME'><scratch file='PATH'/>

A disk is named as on its bus, or by its image.  In push mode it has to be told where each disk
goes; in pull mode every disk is exported where none is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure, machineblock, machinexml
from pyvz.gateway.checkpointxml import disks_of, top_of
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.operations.machinepush import Copy
from pyvz.store.pulls import Export, Pull, Server

_BACKUP: Final = frozenset({"incremental", "server", "disks"})
_OF_PUSH: Final = frozenset({"name", "backup", "type", "backupmode", "incremental", "index"})
_OF_PULL: Final = _OF_PUSH | {"exportname", "exportbitmap"}
_OF_SERVER: Final = frozenset({"transport", "socket", "name", "port", "tls"})
_FORMATS: Final = ("qcow2", "raw")
_LONGEST: Final = 200  # characters of the name of an export
_PORTS: Final = range(1 << 16)


def read(text: str, found: Domain, *, reuse: bool) -> tuple[Copy, ...] | Pull:
    """Return what a backup consists of, by its mode; reuse: images are there.  Raises Failure."""
    top = top_of(text, "domainbackup", _BACKUP)
    since, rows = top.findtext("incremental") or "", top.find("disks")
    mode = top.get("mode") or "push"
    if mode == "pull":
        return _pull(found, top, since, reuse=reuse)
    if mode != "push":
        raise Failure(failure.XML, f"<domainbackup mode='{mode}'>: push or pull")
    if top.find("server") is not None:
        raise Failure(failure.UNSUPPORTED, "The element <server> is of a backup in pull mode")
    copies = tuple(_copies(found, rows, since)) if rows is not None else ()
    if not copies:
        raise Failure(
            failure.XML,
            "The backup does not say where to: <disks><disk name='sda' type='file'>"
            "<target file='/path'/></disk></disks>",
        )
    _check_once([copy.disk for copy in copies], "names a disk twice")
    return tuple(copy._replace(reuse=reuse) for copy in copies)


def _check_once(names: list[str], what: str) -> None:
    if any(count > 1 for count in Counter(names).values()):
        raise Failure(failure.XML, f"The backup {what}")


# Push


def _copies(found: Domain, rows: Element, since: str) -> Iterator[Copy]:
    for row in _taken(rows, _OF_PUSH, frozenset({"target", "driver"})):
        path = _path(row, "target")
        if path is None:
            raise Failure(
                failure.UNSUPPORTED, f"The disk {row.get('name')} has to go to a file: type='file'"
                " and <target file='/path'/>",
            )  # fmt: skip
        form = _format(row)
        if form not in _FORMATS:
            raise Failure(failure.UNSUPPORTED, f"An image of the format '{form}': qcow2 or raw")
        yield Copy(_disk(found, row), Path(path), form, _since(row, since))


def _taken(rows: Element, known: frozenset[str], parts: frozenset[str]) -> Iterator[Element]:
    """Yield each disk that takes part; raises Failure."""
    for row in disks_of(rows, known, parts):
        if (taken := row.get("backup") or "yes") not in {"yes", "no"}:
            raise Failure(failure.XML, f"<disk backup='{taken}'>: yes or no")
        if taken == "yes":
            yield row


def _path(row: Element, tag: str) -> str | None:
    """Return the file that the part TAG of a disk names; None when it names none that can be."""
    part = row.find(tag)
    path = (part.get("file") or "") if part is not None else ""
    is_file = row.get("type", "file") == "file" and path.startswith("/") and path.isprintable()
    return path if is_file else None


def _format(row: Element) -> str:
    driver = row.find("driver")
    return (driver.get("type") if driver is not None else None) or "qcow2"


def _since(row: Element, since: str) -> str:
    since = row.get("incremental") or since
    mode = row.get("backupmode") or ("incremental" if since else "full")
    if mode not in {"full", "incremental"} or (mode == "incremental" and not since):
        raise Failure(failure.XML, f"<disk backupmode='{mode}'>: full, or incremental to something")
    return since if mode == "incremental" else ""


def _disk(found: Domain, row: Element) -> str:
    drive = machineblock.find(found, row.get("name") or "")
    if not drive.is_disk:
        raise Failure(failure.UNSUPPORTED, f"{row.get('name')} is no disk: it cannot be backed up")
    return drive.name


# Pull


def _pull(found: Domain, top: Element, since: str, *, reuse: bool) -> Pull:
    rows = top.find("disks")
    if rows is None:
        rows = Element("disks")
        for drive, name in machinexml.drives(found):
            if drive.is_disk:
                SubElement(rows, "disk", name=name)
    exports = tuple(_exports(found, rows, since, reuse=reuse))
    if not exports:
        raise Failure(failure.XML, "The backup consists of no disk")
    _check_once([each.disk for each in exports], "names a disk twice")
    _check_once([each.name for each in exports], "has two exports of one name")
    return Pull(_server(top.find("server")), exports)


def _exports(found: Domain, rows: Element, since: str, *, reuse: bool) -> Iterator[Export]:
    names = {drive.name: name for drive, name in machinexml.drives(found)}
    for row in _taken(rows, _OF_PULL, frozenset({"scratch", "driver"})):
        scratch = _path(row, "scratch")
        if scratch is None and (row.find("scratch") is not None or reuse):
            raise Failure(
                failure.UNSUPPORTED, f"The disk {row.get('name')} keeps what is overwritten in a"
                " file: type='file' and <scratch file='/path'/>",
            )  # fmt: skip
        if (form := _format(row)) != "qcow2":
            raise Failure(failure.UNSUPPORTED, f"A scratch image of the format '{form}': qcow2")
        disk, begun = _disk(found, row), _since(row, since)
        name = _name(row.get("exportname") or names[disk])
        bitmap = _name(row.get("exportbitmap") or f"backup-{names[disk]}") if begun else ""
        yield Export(disk, name, begun, bitmap, scratch or "", reuse)


def _name(text: str) -> str:
    if len(text) > _LONGEST or not text.isprintable():
        raise Failure(
            failure.XML, f"Exports and bitmaps have names of 1 to {_LONGEST} printable characters"
        )
    return text


def _server(part: Element | None) -> Server:
    """Return where <server> wants it; without one it is at 127.0.0.1."""
    given = dict(part.attrib) if part is not None else {}
    unknown = sorted(given.keys() - _OF_SERVER)
    if unknown:
        raise Failure(failure.UNSUPPORTED, f"<server> with {', '.join(unknown)}")
    if given.get("tls", "no") != "no":
        raise Failure(
            failure.UNSUPPORTED, "<server tls='yes'>: the NBD server has no certificates;"
            " take a Unix socket, and ssh for the way",
        )  # fmt: skip
    transport = given.get("transport") or "tcp"
    if transport == "unix":
        path = given.get("socket") or ""
        if not path.startswith("/") or not path.isprintable():
            raise Failure(failure.XML, "<server transport='unix'> needs socket='/path'")
        return Server(path)
    if transport != "tcp":
        raise Failure(failure.UNSUPPORTED, f"<server transport='{transport}'>: unix or tcp")
    port = given.get("port") or "0"
    if not port.isascii() or not port.isdecimal() or int(port) not in _PORTS:
        raise Failure(failure.XML, f"<server port='{port}'>: a number below 65536")
    return Server(host=given.get("name") or "127.0.0.1", port=int(port))


# Written


def written(found: Domain, copies: tuple[Copy, ...]) -> str:
    """Return the description of a backup in push mode that is under way."""
    top = Element("domainbackup", mode="push")
    going = {copy.disk: copy for copy in copies}
    for drive, row in _rows(found, top, going.keys()):
        copy = going[drive]
        _write_since(row, copy.since)
        SubElement(row, "driver", type=copy.format)
        SubElement(row, "target", file=str(copy.path))
    return text_of(top)


def written_pull(found: Domain, pull: Pull) -> str:
    """Return the description of one in pull mode."""
    top, server = Element("domainbackup", mode="pull"), pull.server
    if server.path:
        SubElement(top, "server", transport="unix", socket=server.path)
    else:
        SubElement(top, "server", transport="tcp", name=server.host, port=str(server.port))
    going = {export.disk: export for export in pull.exports}
    for drive, row in _rows(found, top, going.keys()):
        export = going[drive]
        _write_since(row, export.since)
        row.set("exportname", export.name)
        if export.bitmap:
            row.set("exportbitmap", export.bitmap)
        if export.scratch:  # libvirt's schema has no <driver> without it
            SubElement(row, "driver", type="qcow2")
            SubElement(row, "scratch", file=export.scratch)
    return text_of(top)


def _rows(found: Domain, top: Element, taken: Collection[str]) -> Iterator[tuple[str, Element]]:
    """Write a row for each drive; yields those of TAKEN, which are to be filled."""
    rows = SubElement(top, "disks")
    for drive, name in machinexml.drives(found):
        if drive.name not in taken:
            SubElement(rows, "disk", name=name, backup="no")
        else:
            row = SubElement(rows, "disk", name=name, backup="yes", type="file")
            yield drive.name, row


def _write_since(row: Element, since: str) -> None:
    row.set("backupmode", "incremental" if since else "full")
    if since:
        row.set("incremental", since)
