"""ploop: the commands for snapshots."""

from __future__ import annotations

import os
import sys

from pyvz.cli.ploop_size import disk, uuid
from pyvz.errors import BadValue, Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "snapshot": (
        ("-u", "UUID", "its id (default: a new one)"),
        ("-F", "", "accepted: the file system is always quiet meanwhile"),
        ("-o", "", "accepted, no effect"),
        ("-d", "DEVICE", "not supported: name the disk"),
        ("-b", "UUID", "not supported"),
    ),
    "tsnapshot": (
        ("-u", "UUID", "its id"),
        ("-c", "NAME", "what umount -c takes it away by"),
        ("-F", "", "accepted: the file system is always quiet meanwhile"),
    ),
    "snapshot-list": (
        ("-H,--no-header", "", "without the header"),
        ("-o,--output", "FIELD,...", "uuid, parent_uuid, current, fname"),
        ("-u,--uuid,--id", "UUID", "only this one and those below it"),
        ("-s,--snapshot", "", "mark the snapshot below the top"),
    ),
    "snapshot-switch": (("-u", "UUID", "the snapshot"), ("-D", "", "accepted, no effect")),
    "snapshot-delete": (("-u", "UUID", "the snapshot"),),
    "snapshot-merge": (
        ("-u", "UUID", "this one (default: the one below the top)"),
        ("-A", "", "all below the top"),
        ("-n", "FILE", "not supported: nothing is copied, so there is no new image"),
    ),
    "snapshot-mount": (("-u", "UUID", "the snapshot"), ("-m", "DIR", "where")),
}

FIELDS = {
    "uuid": ("UUID", 38),
    "parent_uuid": ("PARENT_UUID", 38),
    "current": ("C", 1),
    "fname": ("FNAME", 32),
}
DEFAULT_FIELDS = "parent_uuid,current,uuid,fname"


def snapshot(args: Arguments, server: Server) -> int:
    """Take a snapshot."""
    if args.has("d") or args.has("b"):
        raise Unsupported("Only whole disks are snapshot", hint="Name the DiskDescriptor.xml.")
    found = server.change("Image.Snapshot", path=disk(args), uuid=args.value("u"))
    sys.stdout.write(f"ploop snapshot {found['uuid']} has been successfully created\n")
    return 0


def tsnapshot(args: Arguments, server: Server) -> int:
    """Take a temporary snapshot, and attach it."""
    wanted = uuid(args)
    if not args.value("c"):
        raise UsageError("The name of the component is not specified (-c)")
    found = server.change("Image.TemporarySnapshot", path=disk(args), uuid=wanted)
    sys.stdout.write(f"Adding delta dev={found['device']} img={found['image']} (ro)\n")
    sys.stdout.write(f"ploop snapshot {wanted} has been successfully created\n")
    return 0


def snapshot_list(args: Arguments, server: Server) -> int:
    """List snapshots."""
    wanted = (args.value("output") or DEFAULT_FIELDS).lower().split(",")
    for name in wanted:
        if name not in FIELDS:
            raise BadValue(f"Unknown field: {name}")
    rows = server.ask(
        "Image.Snapshots",
        path=disk(args),
        uuid=args.value("uuid"),
        below_top=args.has("snapshot"),
    )["snapshots"]
    if not args.has("no-header"):
        _print_row([(FIELDS[name][0], FIELDS[name][1]) for name in wanted])
    for row in rows:
        _print_row([(_cell(row, name), FIELDS[name][1]) for name in wanted])
    return 0


def _cell(row: dict[str, Any], name: str) -> str:
    return "*" * bool(row["current"]) if name == "current" else str(row[name])


def _print_row(cells: list[tuple[str, int]]) -> None:
    line = " ".join(f"{text:<{width}}" for text, width in cells[:-1])
    sys.stdout.write(f"{line} {cells[-1][0]}\n".lstrip(" ") if line else f"{cells[-1][0]}\n")


def snapshot_switch(args: Arguments, server: Server) -> int:
    """Go back to a snapshot."""
    wanted = uuid(args)
    server.change("Image.SnapshotSwitch", path=disk(args), uuid=wanted)
    sys.stdout.write(f"ploop snapshot has been successfully switched to {wanted}\n")
    return 0


def snapshot_delete(args: Arguments, server: Server) -> int:
    """Delete a snapshot."""
    wanted = uuid(args)
    server.change("Image.SnapshotDelete", path=disk(args), uuid=wanted)
    sys.stdout.write(f"ploop snapshot {wanted} has been successfully deleted\n")
    return 0


def snapshot_merge(args: Arguments, server: Server) -> int:
    """Take snapshots out of the line."""
    if args.has("u") and args.has("A"):
        raise UsageError("Options -u and -A can't be used together")
    if args.has("n"):
        raise Unsupported(
            "No new image is made by a merge: nothing is copied", hint="Leave -n out."
        )
    found = server.change(
        "Image.SnapshotMerge", path=disk(args), uuid=args.value("u"), all=args.has("A")
    )
    for each in found["uuids"]:
        sys.stdout.write(f"ploop snapshot {each} has been successfully merged\n")
    return 0


def snapshot_mount(args: Arguments, server: Server) -> int:
    """Mount a snapshot read-only."""
    target = args.value("m")
    if target is None:
        raise UsageError("A mount point is not specified (-m)")
    found = server.change(
        "Image.Mount",
        path=disk(args),
        target=os.path.abspath(target),
        readonly=True,
        uuid=uuid(args),
    )
    sys.stdout.write(f"Mounting {found['device']} at {found['target']}\n")
    return 0
