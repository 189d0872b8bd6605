"""prlctl: backup, backup-list, backup-delete, restore, and our backup-verify, -mount, -umount.

Texts and formats as in prlctl 7 (PrlSrv.cpp, PrlBackup.cpp).
"""

from __future__ import annotations

import os
import sys
import time

from pyvz.cli.program import failed
from pyvz.cli.subject import Subject, find, say
from pyvz.errors import EnvironmentNotFound, Unsupported, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

_STORAGE: OptionRow = (
    "-s,--storage",
    "[USER@]SERVER[:PORT]",
    "backups on another node, by ssh",
)
_PATH: OptionRow = ("--backup-path", "DIRECTORY", "the backups in this directory")
_TAG: OptionRow = ("-t,--tag,-i,--id", "BACKUP", "the backup with this id")
_TUNNEL: OptionRow = ("--no-tunnel", "", "accepted, no effect: ssh encrypts")
_HEADER: OptionRow = ("-H,--no-header", "", "print no header")
_FULL_ROWS: OptionRow = ("-f,--full", "", "print a block per backup")
_KINDS: OptionRow = ("--vmtype", "ct|vm|all", "only of this kind")
_LOCAL: OptionRow = ("--localvms", "", "only of environments of this node")

CREATE: tuple[OptionRow, ...] = (
    ("-f,--full,-F,-I", "", "begin a new chain: read and store everything"),
    ("-i,--incremental", "", "what changed since the last backup (default)"),
    ("-d,--differental,--differential", "", "as --incremental: every backup is whole by itself"),
    ("--description", "TEXT", "a description"),
    _STORAGE,
    _PATH,
    ("-u,--uncompressed,--no-compression", "", "accepted, no effect: data is compressed"),
    _TUNNEL,
    ("--no-reversed-delta", "", "accepted, no effect"),
)

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "backup": CREATE,
    "backup-list": (_FULL_ROWS, _HEADER, _LOCAL, _KINDS, _STORAGE, _PATH),
    "backup-delete": (
        _TAG,
        ("-k,--keep-chain", "", "keep the later backups of its chain"),
        _STORAGE,
        _PATH,
    ),
    "restore": (
        _TAG,
        ("-n,--name", "NAME", "restore as a new environment of this name"),
        ("--dst", "PATH", "parent directory of the restored private area"),
        ("-l,--list", "", "list backups instead"),
        ("-e,--vm", "ID", "the environment"),
        _STORAGE,
        _PATH,
        _TUNNEL,
        ("--live", "", "for VMs; refused for containers"),
        _FULL_ROWS,
        _HEADER,
    ),
    "backup-verify": (_TAG, _STORAGE, _PATH),
    "backup-mount": (_TAG, ("--dst", "PATH", "mount it there"), _STORAGE, _PATH),
    "backup-umount": (_TAG,),
}

_ROW = "{:>38} {:<38} {:<20} {:<20} {:>4} {:>10}"


def backup_(args: Arguments, server: Server) -> int:
    """Back up an environment."""
    subject = find(server, args.word("The ID or name"))
    make(args, server, subject, args.words[0])
    return 0


def make(args: Arguments, server: Server, subject: Subject, name: str) -> None:
    """Back up one environment as the options say; raises what failed."""
    if args.has("full") and (args.has("incremental") or args.has("differental")):
        raise UsageError("Unable to simultaneously use --full and --incremental")
    say(f"Backing up the {subject.kind} {name}")
    try:
        made = server.run(
            "Backup.Create",
            ref=subject.uuid,
            full=args.has("full"),
            description=args.value("description") or "",
            **_where(args),
        )
    except VZError as error:
        raise failed(f"backup the {subject.kind}", error) from error
    kind = subject.kind
    say(f"The {kind} has been successfully backed up with backup id {made['id']}.")


def backup_list_(args: Arguments, server: Server) -> int:
    """Print the backups that there are."""
    args.no_more_words(1)
    return _list(args, server, args.words[0] if args.words else None)


def _list(args: Arguments, server: Server, ref: str | None) -> int:
    if args.value("vmtype", "all") not in {"ct", "c", "vm", "v", "all", "a"}:
        raise UsageError(f"An incorrect value '{args.value('vmtype')}' for --vmtype is specified")
    try:
        rows = server.ask("Backup.List", ref=ref, **_where(args))["backups"]
    except VZError as error:
        raise failed("get the backup tree", error) from error
    if args.value("vmtype", "all") in {"vm", "v"}:
        rows = []
    if args.has("localvms"):
        rows = [row for row in rows if _is_here(server, row)]
    if args.has("full"):
        sys.stdout.write("".join(block(row) for row in rows))
        return 0
    if not args.has("no-header"):
        rows = [None, *rows]
    sys.stdout.write("".join(line(row) + "\n" for row in rows))
    return 0


def line(row: dict[str, Any] | None) -> str:
    """Return one line of the table; None: its header."""
    if row is None:
        return _ROW.format("ID", "Backup_ID", "Node", "Date", "Type", "Size")
    kind = "i" if row["incremental"] else "f"
    when = _date(row["created"])
    return _ROW.format(f"{{{row['uuid']}}}", row["id"], row["host"], when, kind, row["size"])


def block(row: dict[str, Any]) -> str:
    """Return all that is known of one backup, as -f prints it."""
    lines = [
        f"VM_UUID: {{{row['uuid']}}}",
        f"Name: {row['name']}",
        f"Host: {row['host']}",
        f"Owner: {row['owner']}",
        f"Backup_ID: {row['id']}",
        f"Date: {_date(row['created'])}",
        f"Type: {'i' if row['incremental'] else 'f'}",
        f"Size: {row['size']}",
        f"Description: {row['description']}",
        f"ServerUuid: {{{row['server']}}}",
    ]
    if row["damaged"]:
        lines.append("Damaged: yes")
    lines.append("DiskList:")
    for disk in row["disks"]:
        lines += [
            f"\tName: {disk['name']}",
            f"\tOriginalPath: {row['home']}/{disk['name']}",
            f"\tSize: {disk['size']}",
        ]
    return "\n".join(lines) + "\n\n"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _is_here(server: Server, row: dict[str, Any]) -> bool:
    return bool(server.ask("Environment.Status", ref=row["uuid"])["exists"])


def backup_delete_(args: Arguments, server: Server) -> int:
    """Delete a backup, or all of an environment."""
    ref, tag = _which(args)
    if ref is not None:
        kind = _kind(server, ref)
        say(f"Delete the {kind} backup")
    else:
        kind = str(tag)
        say(f"Delete the backup {tag}")
    try:
        server.run(
            "Backup.Delete",
            ref=ref,
            tag=tag,
            keep_chain=args.has("keep-chain"),
            **_where(args),
        )
    except VZError as error:
        raise failed("delete the backup", error) from error
    say(f"The {kind} backup have been successfully removed.")
    return 0


def restore_(args: Arguments, server: Server) -> int:
    """Bring an environment back from a backup."""
    if args.has("list"):
        args.no_more_words(1)
        return _list(args, server, args.words[0] if args.words else args.value("vm"))
    if args.has("live"):
        raise Unsupported("--live is not supported: the restored machine is started as any other")
    target = args.value("dst")
    if target is not None and not target.startswith("/"):
        raise UsageError(
            f"An incorrect value for --dst is specified; relative path '{target}' is not allowed."
        )
    ref, tag = _which(args)
    kind = "CT"
    if ref is not None:
        kind = _kind(server, ref)
        say(f"Restore the {kind} {ref}")
    else:
        say(f"Restore the backup id={tag}")
    try:
        made = server.run(
            "Backup.Restore",
            ref=ref,
            tag=tag,
            name=args.value("name"),
            dst=target,
            **_where(args),
        )
    except VZError as error:
        raise failed(f"restore the {kind}", error) from error
    say(f"The {_kind(server, str(made['uuid']))} has been restored.")
    return 0


def backup_verify_(args: Arguments, server: Server) -> int:
    """Read all data of backups and tell what is damaged."""
    args.no_more_words(1)
    ref = args.words[0] if args.words else None
    try:
        result = server.run("Backup.Verify", ref=ref, tag=args.value("tag"), **_where(args))
    except VZError as error:
        raise failed("verify the backup", error) from error
    for problem in result["problems"]:
        say(problem)
    if not result["problems"]:
        say("No damage was found.")
    return 255 if result["problems"] else 0


def backup_mount_(args: Arguments, server: Server) -> int:
    """Mount the files of a backup read-only."""
    target = args.value("dst")
    try:
        result = server.run(
            "Backup.Mount",
            tag=_tag(args),
            target=os.path.abspath(target) if target else None,
            **_where(args),
        )
    except VZError as error:
        raise failed("mount the backup", error) from error
    say(f"The backup has been successfully mounted at {result['target']}")
    return 0


def backup_umount_(args: Arguments, server: Server) -> int:
    """Unmount a backup."""
    try:
        server.change("Backup.Umount", tag=_tag(args))
    except VZError as error:
        raise failed("unmount the backup", error) from error
    say("The backup has been successfully unmounted.")
    return 0


def _where(args: Arguments) -> dict[str, str | None]:
    """Return where the backups are, as the server wants it."""
    path, storage = args.value("backup-path"), args.value("storage")
    if path is not None and storage is None:
        path = os.path.abspath(path)
    return {"path": path, "storage": storage}


def _tag(args: Arguments) -> str:
    tag = args.value("tag")
    if not tag and args.words:
        return args.word("The backup")
    args.no_more_words()
    if not tag:
        raise UsageError("The backup is not specified: use --tag")
    return tag


def _which(args: Arguments) -> tuple[str | None, str | None]:
    """Return (environment, None) or (None, backup)."""
    args.no_more_words(1)
    tag = args.value("tag")
    ref = args.words[0] if args.words else args.value("vm")
    if tag is None and ref is None:
        raise UsageError("VM ID is not specified.")
    return (None, tag) if tag is not None else (ref, None)


def _kind(server: Server, ref: str) -> str:
    """Return what REF is; one that is gone, whose backups outlive it, counts as a container."""
    try:
        return find(server, ref).kind
    except EnvironmentNotFound:
        return "CT"
