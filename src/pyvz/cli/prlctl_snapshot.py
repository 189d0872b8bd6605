"""prlctl: snapshot, snapshot-list, snapshot-switch, snapshot-delete, compact, convert.

Texts and formats as in prlctl 7 (PrlVm.cpp, PrlSnapshot.cpp).
"""

from __future__ import annotations

import sys

from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.errors import SnapshotNotFound, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

_ID: OptionRow = ("-i,--id", "ID", "the snapshot")
_WAIT: OptionRow = ("--wait", "", "for VMs; no effect for containers")
OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "snapshot": (
        ("-n,--name", "NAME", "name of the snapshot"),
        ("-d,--description", "TEXT", "description of the snapshot"),
        ("--skip-suspend", "", "the disks only, without the memory of one that runs"),
        _WAIT,
    ),
    "snapshot-list": (
        ("-t,--tree", "", "draw the tree"),
        ("-i,--id", "ID", "print one snapshot"),
        ("-H,--no-header", "", "print no header"),
    ),
    "snapshot-switch": (
        ("-i,--id", "ID", "the snapshot (default: the current one)"),
        ("--skip-resume", "", "leave it suspended where the snapshot has memory"),
        _WAIT,
    ),
    "snapshot-delete": (
        _ID,
        ("-c,--children", "", "delete those below it too, instead of moving them up"),
    ),
    "convert": (
        ("--layout", "LAYOUT", "storage driver of the disk: ploop, simfs, ... (required)"),
    ),
}


def snapshot_(args: Arguments, server: Server) -> int:
    """Keep disks and configuration as they are now."""
    subject = find(server, args.word("The ID or name"))
    say("Creating the snapshot...")
    try:
        made = server.run(
            "Storage.Snapshot",
            ref=subject.uuid,
            name=args.value("name") or "",
            description=args.value("description") or "",
            memory=not args.has("skip-suspend"),
        )
    except VZError as error:
        raise failed("create the snapshot", error) from error
    if not args.has("skip-suspend"):
        tell_memory(made)
    say(f"The snapshot with id {made['id']} has been successfully created.")
    return 0


def tell_memory(made: dict[str, Any]) -> None:
    """Say on stderr that a running container's memory is not in the snapshot."""
    if made["running"] and not made["memory"]:
        sys.stderr.write(
            "The container runs: its disks were saved as they are now, its memory was not.\n"
        )


def snapshot_switch_(args: Arguments, server: Server) -> int:
    """Go back to a snapshot."""
    subject = find(server, args.word("The ID or name"))
    wanted = args.value("id")
    if wanted == "":  # a script's variable that is not set must not be the last snapshot
        raise UsageError("Snapshot id is not specified.")
    if wanted is None:
        rows = _rows(server, subject.uuid)
        wanted = next((row["id"] for row in rows if row["current"]), None)
        if wanted is None:
            raise SnapshotNotFound("No snapshot to revert to.")
    say(f"Switch to the snapshot {_braced(wanted)}")
    try:
        server.run(
            "Storage.SnapshotSwitch",
            ref=subject.uuid,
            id=wanted,
            resume=not args.has("skip-resume"),
        )
    except VZError as error:
        raise failed("switch to snapshot", error) from error
    say(f"The {subject.kind} has been successfully switched.")
    return 0


def snapshot_delete_(args: Arguments, server: Server) -> int:
    """Delete a snapshot."""
    subject = find(server, args.word("The ID or name"))
    wanted = args.value("id")
    if not wanted:
        raise UsageError("Snapshot id is not specified.")
    say("Delete the snapshot...")
    try:
        server.run(
            "Storage.SnapshotDelete", ref=subject.uuid, id=wanted, children=args.has("children")
        )
    except VZError as error:
        raise failed("delete snapshot", error) from error
    say("The snapshot has been successfully deleted.")
    return 0


def snapshot_list_(args: Arguments, server: Server) -> int:
    """Print the snapshots as a list or tree, or one of them."""
    subject = find(server, args.word("The ID or name"))
    try:
        rows = _rows(server, subject.uuid)
    except VZError as error:
        raise failed("get the snapshot tree", error) from error
    wanted = args.value("id")
    if args.has("tree"):
        sys.stdout.write(tree(rows))
    elif wanted:
        found = [row for row in rows if row["id"] == _braced(wanted)]
        if not found:
            raise SnapshotNotFound(f"Unable to find snapshot by uuid {_braced(wanted)}")
        sys.stdout.write(info(found[0]))
    else:
        sys.stdout.write(table(rows, header=not args.has("no-header")))
    return 0


def _rows(server: Server, uuid: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = server.ask("Storage.SnapshotList", ref=uuid)["snapshots"]
    return rows


def _braced(text: str) -> str:
    return "{" + text.strip("{}").lower() + "}"


def info(row: dict[str, Any]) -> str:
    """Return one snapshot as `-i` prints it."""
    current = "Current: yes\n" if row["current"] else ""
    return (
        f"ID: {row['id']}\nName: {row['name']}\nDate: {row['date']}\n{current}"
        f"State: {row['state']}\nDescription: {row['description']}\n\n"
    )


def walk(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows depth first, as prlctl goes through the tree."""
    below = _children(rows)
    found = []
    pool = below.get("", [])[::-1]
    while pool:
        row = pool.pop()
        found.append(row)
        pool += below.get(row["id"], [])[::-1]
    return found


def _children(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    below: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        below.setdefault(row["parent"], []).append(row)
    return below


def table(rows: list[dict[str, Any]], *, header: bool) -> str:
    """Return the default list."""
    lines = [f"{'PARENT_SNAPSHOT_ID':<40}SNAPSHOT_ID"] if header else []
    for row in walk(rows):
        mark = "*" if row["current"] else " "
        lines.append(f"{row['parent']:>38} {mark}{row['id']:>38}")
    return "".join(line + "\n" for line in lines)


def tree(rows: list[dict[str, Any]]) -> str:
    """Return the tree as prlctl draws it: a line for each leaf, from the root to it."""
    below = _children(rows)
    known = {row["id"]: row for row in rows}
    shown: set[str] = set()
    lines = []
    for leaf in walk(rows):
        if leaf["id"] in below:
            continue
        line = ""
        at: dict[str, Any] | None = leaf
        while at is not None:
            line = _piece(at, below, shown) + line
            shown.add(at["id"])
            at = known.get(at["parent"])
        lines.append(line)
    return "".join(line + "\n" for line in lines)


def _piece(row: dict[str, Any], below: dict[str, list[dict[str, Any]]], shown: set[str]) -> str:
    """Return what stands for one snapshot in a line (PrlSnapshotTree::print_tree)."""
    identity, parent = str(row["id"]), str(row["parent"])
    if identity in shown:
        siblings = [each["id"] for each in below[parent]]
        more = siblings.index(identity) < len(siblings) - 1
        before = "|" if more else " " if parent in shown else ""
        return before + " " * len(identity)
    return ("\\" if parent in shown else "") + ("*" if row["current"] else "_") + identity


def convert_(args: Arguments, server: Server) -> int:
    """Copy the disk of a stopped container into another layout."""
    subject = find(server, args.word("The ID or name"))
    layout = args.value("layout")
    if not layout:
        raise UsageError(f"Failed to convert the {subject.kind}; --layout is not specified.")
    say(f"Convert the {subject.kind} to layout {layout}...")
    try:
        done = server.run("Storage.Convert", ref=subject.uuid, layout=layout)
    except VZError as error:
        raise failed(f"convert the {subject.kind}", error) from error
    if done["files"]:
        say(f"{done['files']} files were copied from layout {done['before']} and compared.")
    say(f"The {subject.kind} has been successfully converted.")
    return 0
