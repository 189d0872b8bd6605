"""vzctl: snapshot*, compact, convert.  Texts, formats and codes as in vzctl 7 and libvzctl."""

from __future__ import annotations

import os
import sys

from pyvz.cli.program import tell as tell_error
from pyvz.cli.vzctl import container, tell
from pyvz.errors import (
    AlreadyExists,
    BadValue,
    InvalidState,
    NotEnoughResources,
    SnapshotNotFound,
    StorageError,
    Unsupported,
    UsageError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

# VZCTL_E_*: vzerror.h
CREATE, DELETE, SWITCH, MOUNT, UMOUNT, CONVERT = 156, 158, 159, 160, 161, 155

_ID: OptionRow = ("--id,--uuid", "UUID", "the snapshot (required)")
_NAME_VARIABLE = "VZCTL_ENV_SNAPSHOT_NAME_PARAM"
_DESCRIPTION_VARIABLE = "VZCTL_ENV_SNAPSHOT_DESC_PARAM"
OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "snapshot": (
        ("--id,--uuid", "UUID", "use this id"),
        ("--name", "NAME", "name of the snapshot"),
        ("--description", "TEXT", "description of the snapshot"),
        ("--skip-suspend,--skip-dump", "", "without the memory of a running container"),
        ("--component-name", "NAME", "accepted, no effect"),
        ("--env", "", f"name and description from {_NAME_VARIABLE}, {_DESCRIPTION_VARIABLE}"),
    ),
    "snapshot-switch": (
        _ID,
        ("--skip-resume", "", "leave it suspended where the snapshot has memory"),
    ),
    "snapshot-delete": (_ID,),
    "snapshot-list": (
        ("-H,--no-header", "", "print no header"),
        ("-o,--output", "FIELD[,FIELD...]", "print these fields"),
        ("-u,--id,--uuid", "UUID", "only this snapshot and those that it is based on"),
        ("-L,--list", "", "print the names of the fields"),
    ),
    "snapshot-mount": (_ID, ("--target", "DIRECTORY", "where to mount it (required)")),
    "snapshot-umount": (_ID,),
    "compact": (
        ("--defrag", "", "accepted, no effect: images have no order of their own"),
        ("--dry", "", "only tell how much of each disk is not used"),
        ("--threshold", "PERCENT", "only when more than that is not used"),
        ("--delta", "PERCENT", "accepted, no effect"),
    ),
    "convert": (
        ("--ve_layout,--layout,--velayout", "LAYOUT", "storage driver (default: ploop)"),
        ("--config", "SAMPLE", "accepted, no effect"),
    ),
}

# name: header, key of the row, width; negative: flush left (snapshot-list.c, field_tbl)
FIELDS = {
    "uuid": ("UUID", "id", -38),
    "parent_uuid": ("PARENT_UUID", "parent", -38),
    "current": ("C", "current", 1),
    "date": ("DATE", "date", -19),
    "name": ("NAME", "name", -32),
    "desc": ("DESC", "description", -32),
    "device": ("DEVICE", "device", -16),
    "target": ("TARGET", "target", -32),
}
_DEFAULT = "parent_uuid,current,uuid,date,name"


def _coded(code: int, work: Callable[[], None]) -> int:
    """Do the work; what fails in the storage itself is told and ends with the verb's own code."""
    try:
        work()
    except NotEnoughResources:
        raise
    except (AlreadyExists, InvalidState, SnapshotNotFound, StorageError, Unsupported) as error:
        tell_error(error)
        return code
    return 0


def snapshot_(args: Arguments, server: Server) -> int:
    """Make a snapshot."""
    found = container(server, args.word("ctid"))
    guid = _braced(args.value("id") or _new_id())
    name, description = args.value("name"), args.value("description")
    skip = args.has("skip-suspend")
    if args.has("env"):
        name = name or os.environ.get(_NAME_VARIABLE)
        description = description or os.environ.get(_DESCRIPTION_VARIABLE)

    def work() -> None:
        tell(args, f"Creating snapshot {guid}")
        made = server.run(
            "Storage.Snapshot",
            ref=found.uuid,
            id=guid,
            name=name or "",
            description=description or "",
            memory=not skip,
        )
        if made["running"] and not made["memory"] and not skip:
            sys.stderr.write("The disks of the running Container were saved, not its memory\n")
        tell(args, f"Snapshot {guid} has been successfully created")

    return _coded(CREATE, work)


def snapshot_switch_(args: Arguments, server: Server) -> int:
    """Go back to a snapshot."""
    found = container(server, args.word("ctid"))
    guid = _wanted(args)

    def work() -> None:
        tell(args, f"Switching to snapshot {guid}")
        resume = not args.has("skip-resume")
        server.run("Storage.SnapshotSwitch", ref=found.uuid, id=guid, resume=resume)
        tell(args, f"Container has been successfully switched to {guid} snapshot")

    return _coded(SWITCH, work)


def snapshot_delete_(args: Arguments, server: Server) -> int:
    """Delete a snapshot; those below it move up."""
    found = container(server, args.word("ctid"))
    guid = _wanted(args)

    def work() -> None:
        tell(args, f"Deleting snapshot {guid}")
        server.run("Storage.SnapshotDelete", ref=found.uuid, id=guid, children=False)
        tell(args, f"Snapshot {guid} has been successfully deleted")

    return _coded(DELETE, work)


def snapshot_mount_(args: Arguments, server: Server) -> int:
    """Mount a snapshot read-only."""
    found = container(server, args.word("ctid"))
    guid = _wanted(args)
    target = args.value("target")
    if not target:
        raise UsageError("Mount direcory is not specified.")  # as the original spells it

    def work() -> None:
        tell(args, f"Mount snapshot {guid}")
        place = os.path.abspath(target)
        server.change("Storage.SnapshotMount", ref=found.uuid, id=guid, target=place)

    return _coded(MOUNT, work)


def snapshot_umount_(args: Arguments, server: Server) -> int:
    """Unmount a snapshot."""
    found = container(server, args.word("ctid"))
    guid = _wanted(args)

    def work() -> None:
        tell(args, f"Umount snapshot {guid}")
        server.change("Storage.SnapshotUmount", ref=found.uuid, id=guid)

    return _coded(UMOUNT, work)


def snapshot_list_(args: Arguments, server: Server) -> int:
    """Print the snapshots."""
    if args.has("list"):
        for name, (header, _, _) in FIELDS.items():
            sys.stdout.write(f"{name:<15} {header:<15}\n")
        return 0
    found = container(server, args.word("ctid"))
    names = _fields(args.value("output") or _DEFAULT)
    rows = server.ask("Storage.SnapshotList", ref=found.uuid)["snapshots"]
    if args.has("id") and rows:
        rows = _chain(rows, _wanted(args))
    sys.stdout.write(table(rows, names, header=not args.has("no-header")))
    return 0


def table(rows: list[dict[str, Any]], names: list[str], *, header: bool) -> str:
    """Return the list; the last column of a row has no padding, that of the header has."""
    lines = [" ".join(_padded(FIELDS[name][0], FIELDS[name][2]) for name in names)] * header
    for row in rows:
        cells = [_padded(_cell(row, name), FIELDS[name][2]) for name in names[:-1]]
        lines.append(" ".join([*cells, _cell(row, names[-1])]))
    return "".join(line + "\n" for line in lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[FIELDS[name][1]]
    return "*" * value if name == "current" else str(value)


def _padded(text: str, width: int) -> str:
    return f"{text:<{-width}}" if width < 0 else f"{text:>{width}}"


def _fields(text: str) -> list[str]:
    names = [name.lower() for name in text.rstrip(",").split(",")]
    for name in names:
        if name not in FIELDS:
            raise BadValue(f"Unknown field: {name}")
    return names


def _chain(rows: list[dict[str, Any]], guid: str) -> list[dict[str, Any]]:
    """Return the snapshot and those that it is based on, the nearest first."""
    known = {row["id"]: row for row in rows}
    found = []
    while guid:
        if guid not in known:
            raise BadValue(f"Can't find snapshot by uuid {guid}")
        found.append(known[guid])
        guid = known[guid]["parent"]
    return found


def _wanted(args: Arguments) -> str:
    guid = args.value("id")
    if not guid:
        raise UsageError("Snapshot uuid is not specified.")
    return _braced(guid)


def _braced(text: str) -> str:
    bare = text.strip("{}").lower()
    groups = [len(part) for part in bare.split("-") if not set(part) - set("0123456789abcdef")]
    if groups != [8, 4, 4, 4, 12]:
        raise BadValue(f"Invalid guid is specified: {text}")
    return "{" + bare + "}"


def _new_id() -> str:
    """Return a random UUID (version 4, RFC 9562); the module uuid takes long to import."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def compact_(args: Arguments, server: Server) -> int:
    """Give unused space back to the node."""
    found = container(server, args.word("ctid"))
    from pyvz.cli.pcompact import percent, threshold  # noqa: PLC0415  only here

    if args.has("dry") or args.has("threshold"):
        disks = server.ask("Storage.Unused", ref=found.uuid)["disks"]
        least = threshold(f"THRESHOLD={args.value('threshold')}") if args.has("threshold") else 0
        for disk in disks:
            tell(args, f"{disk['name']}: {percent(disk)}% are not used")
        if args.has("dry") or all(percent(disk) <= least for disk in disks):
            return 0
    done = server.run("Storage.Compact", ref=found.uuid)
    tell(args, f"Compacted: {done['freed'] >> 20} MiB were freed")
    return 0


def convert_(args: Arguments, server: Server) -> int:
    """Copy the disk into another layout."""
    found = container(server, args.word("ctid"))

    def work() -> None:
        layout = args.value("ve_layout") or "ploop"
        done = server.run("Storage.Convert", ref=found.uuid, layout=layout)
        tell(args, f"Container was converted from layout {done['before']}")

    return _coded(CONVERT, work)
