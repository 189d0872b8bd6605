"""ploop: disk images of containers as files of the node.

A command is a row `(names, operands, summary, function name)`; the functions and their options
are in ploop_disk.py and ploop_snapshot.py, of which only the one that is needed is loaded.
"""

from __future__ import annotations

import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import Unsupported, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    Row = tuple[str, str, str, str]

COMMANDS: tuple[Row, ...] = (
    ("init", "-s SIZE FILE", "make an image and a DiskDescriptor.xml beside it", "disk"),
    ("mount", "DISK|FILE [FILE...]", "attach a disk, and mount it with -m", "disk"),
    ("umount", "DISK|FILE", "unmount and detach a disk, also by -d or -m", "disk"),
    ("resize", "-s SIZE DISK", "resize a disk and the file system in it", "disk"),
    ("info", "DISK", "show how full a disk is, with -s its format, with -d its device", "disk"),
    ("list", "", "list the images that are attached", "disk"),
    ("check,fsck", "DISK|FILE", "check images, with -f repair them", "disk"),
    ("fscheck", "DISK", "check and repair the file system of a disk", "disk"),
    ("convert", "-f FORMAT|-v VERSION DISK", "bring a disk into another form", "disk"),
    ("copy", "-s DISK|FILE -d FILE", "copy a disk into a new image file", "disk"),
    ("grow", "-s SIZE DISK|FILE", "make an image larger, not what is in it", "disk"),
    ("balloon", "discard|show|... DISK", "discard: give free space back to the node", "disk"),
    ("restore-descriptor", "DIR FILE", "write a new DiskDescriptor.xml for an image", "disk"),
    ("replace", "-i FILE DISK", "let an equal image take the place of one of a disk", "disk"),
    ("snapshot", "DISK", "take a snapshot", "snapshot"),
    ("tsnapshot", "-u UUID -c NAME DISK", "take a temporary snapshot, and attach it", "snapshot"),
    ("snapshot-list", "DISK", "list the snapshots and the top", "snapshot"),
    ("snapshot-switch", "-u UUID DISK", "go back to a snapshot", "snapshot"),
    ("snapshot-delete", "-u UUID DISK", "delete a snapshot", "snapshot"),
    ("snapshot-merge", "DISK", "take a snapshot out of the line below the top", "snapshot"),
    ("snapshot-mount", "-u UUID -m DIR DISK", "mount a snapshot read-only", "snapshot"),
)

# Commands of the original that answer clearly and do nothing.
_NO_DEVICE = "Images are shown by the kernel's own loop devices: use mount and umount."
_NO_ENCRYPTION = "Put the pool on an encrypted device of the node."
LATER = {
    "start": _NO_DEVICE,
    "stop": _NO_DEVICE,
    "clear": _NO_DEVICE,
    "delete": _NO_DEVICE,
    "rm": _NO_DEVICE,
    "stat": "See: ploop info, ploop list.",
    "merge": "Use snapshot-merge; thin deltas are merged by: ploop convert.",
    "encrypt": _NO_ENCRYPTION,
    "degrade": _NO_DEVICE,
    "tg-init": _NO_DEVICE,
    "tg-deinit": _NO_DEVICE,
    "tg-status": _NO_DEVICE,
}


def main(argv: Sequence[str]) -> int:
    """Run ploop with the words after the program's name; return the exit code."""
    return run("ploop", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the command of ARGV and run it."""
    # -v, -vvv, -v4: how much the original writes to its log; ours has everything.
    while argv and argv[0].startswith("-v") and argv[0][2:].strip("v0123456789") == "":
        del argv[0]
    if argv in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(usage())
        return 0
    if argv == ["--version"]:
        sys.stdout.write(f"ploop version {VERSION}\n")
        return 0
    if not argv:
        sys.stderr.write(usage())
        raise UsageError("No command is specified")
    name, *rest = argv
    if name in LATER:
        raise Unsupported(f"ploop {name} is not supported", hint=LATER[name])
    for row in COMMANDS:
        if name in row[0].split(","):
            return _run(row, rest)
    raise UsageError(f"Unknown command: {name}", hint="ploop --help lists the commands.")


def _run(row: Row, argv: list[str]) -> int:
    module = load(row)
    command = row[0].split(",")[0]
    options = module.OPTIONS[command]
    if argv in (["--help"], ["-h"], ["--"]):
        sys.stdout.write(_command_usage(row, options))
        return 0
    args = arguments.parse(options, argv, abbreviations=True)
    with Server("ploop") as server:
        code: int = getattr(module, command.replace("-", "_"))(args, server)
    return code


def load(row: Row) -> ModuleType:
    """Return the module with the command of a row."""
    if row[3] == "snapshot":
        from pyvz.cli import ploop_snapshot  # noqa: PLC0415  only the one that is needed

        return ploop_snapshot
    from pyvz.cli import ploop_disk  # noqa: PLC0415

    return ploop_disk


def usage() -> str:
    """Return the usage text."""
    lines = ["Usage: ploop COMMAND [OPTIONS] DISK", "Commands:"]
    for names, operands, text, _ in COMMANDS:
        lines.append(f"  {names.split(',')[0] + ' ' + operands:<42} {text}")
    lines.append("DISK is a DiskDescriptor.xml or its directory. ploop COMMAND --help tells more.")
    return "\n".join(lines) + "\n"


def _command_usage(row: Row, options: tuple[tuple[str, str, str], ...]) -> str:
    lines = [f"Usage: ploop {row[0].split(',')[0]} [OPTIONS] {row[1]}", f"  {row[2]}"]
    for names, metavar, text in options:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"  {left:<28} {text}")
    return "\n".join(lines) + "\n"
