"""prl_disk_tool: virtual disks by their directory, as Virtuozzo's tool has it."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments, prl_disk_vm
from pyvz.cli import prl_disk_words as words
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvz.cli.arguments import Arguments, OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    (
        "--hdd",
        "DIR",
        "directory with a DiskDescriptor.xml, a file in it, or the image of a machine",
    ),
    ("--size", "SIZE", "resize: with the suffix K, M, G, T (default: M); whole MiB"),
    (
        "--resize_partition",
        "",
        "accepted: a container's always follow, a machine's are its own",
    ),
    ("--plain", "", "convert: keep the space of the whole disk from now on"),
    ("--expanding", "", "convert: take space as it is needed"),
    ("--merge", "", "convert: without its snapshots"),
    ("--split", "", "not supported"),
    ("-i,--info", "", "resize, compact: only show what they could do"),
    ("--units", "K|M|G|T", "of the sizes shown by resize --info (default: M)"),
    ("-n,--dry-run", "", "only say what would be done"),
    ("-v,--verbose", "", "say what is done"),
    ("-f,--force", "", "accepted, no effect"),
    ("--no-space-check", "", "accepted, no effect"),
    ("--external", "", "accepted: there is one kind of snapshots"),
    ("--comm", "NAME", "accepted, no effect"),
    ("-h,--help,--usage", "", "show this"),
)
DESCRIPTOR = "DiskDescriptor.xml"


def main(argv: Sequence[str]) -> int:
    """Run prl_disk_tool with the words after the program's name; return the exit code."""
    return run("prl_disk_tool", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the command of ARGV and run it."""
    if argv == ["--version"]:
        sys.stdout.write(f"prl_disk_tool version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv, abbreviations=True)
    if args.has("help") or args.words == ["help"]:
        sys.stdout.write(usage())
        return 0
    if not args.words:
        raise UsageError("No operation specified")
    name = args.word("A command")
    functions = {row[0]: row[3] for row in COMMANDS}
    if name not in functions:
        raise UsageError(f"Unknown action: {name}", hint="prl_disk_tool --help lists them.")
    path = _disk_of(args.value("hdd"))
    found = functions[name]
    if not os.path.isdir(path):
        _only_said(args, f"prl_disk_tool {name} on {path}, the image of a virtual machine")
        found = prl_disk_vm.COMMANDS[name]
    with Server("prl_disk_tool") as server:
        return found(args, path, server)


def _disk_of(given: str | None) -> str:
    """Return the directory of the disk that --hdd names: it, or a file beside the descriptor.

    A file without one is an image of a virtual machine, and returned itself.
    """
    if given is None:
        raise UsageError("Invalid disk path", details="A disk is not specified (--hdd).")
    path = os.path.abspath(given)
    if not os.path.exists(path):
        raise UsageError("Invalid disk path", details=f"{path} is not there.")
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    if os.path.exists(os.path.join(directory, DESCRIPTOR)):
        return directory
    if os.path.isdir(path):
        raise UsageError(
            "Invalid disk path",
            details=f"{directory} has no {DESCRIPTOR}.",
            hint="The disk of a virtual machine is named by its image file.",
        )
    return path


def _only_said(args: Arguments, what: str) -> bool:
    """Say what is done, if that is wanted; return whether that is all."""
    if args.has("dry-run") or args.has("verbose"):
        sys.stdout.write(what + "\n")
    return args.has("dry-run")


def resize(args: Arguments, path: str, server: Server) -> int:
    """Resize a disk and what is in it; or show how small it could become."""
    if args.has("info"):
        return _resize_info(args, path, server)
    size = words.size_wanted(args)
    if not size:
        raise UsageError(f"{args.value('size')} is less than 1 MiB")
    if not _only_said(args, f"Resizing {path} to {size >> 20}M"):
        server.run("Image.Resize", path=path, size=size)
        sys.stdout.write("Operation progress 100 %\nThe virtual disk has been resized.\n")
    return 0


def _resize_info(args: Arguments, path: str, server: Server) -> int:
    unit, step = words.unit_wanted(args)
    found = server.ask("Image.Estimate", path=path)["estimate"]
    words.tell_sizes(f"{found['size'] // step}{unit}", f"{-(-found['minimum'] // step)}{unit}")
    if not found["resizable"]:
        sys.stderr.write(
            "    Warning! The last partition cannot be resized because its file system is either "
            "not supported or damaged.\n"
        )
    return 0


def compact(args: Arguments, path: str, server: Server) -> int:
    """Give free space back; or show how much of the disk takes space."""
    if args.has("info"):
        return _compact_info(path, server)
    if not _only_said(args, f"Giving the free space of {path} back"):
        freed = server.run("Image.Discard", path=path)["size"]
        sys.stdout.write(f"The virtual disk has been compacted: {freed >> 20} MB were freed.\n")
    return 0


def _compact_info(path: str, server: Server) -> int:
    found = server.ask("Image.Estimate", path=path)["estimate"]
    words.tell_blocks(found["blocksize"], found["size"], found["allocated"], found["used"])
    return 0


def convert(args: Arguments, path: str, server: Server) -> int:
    """Bring a disk into the form that runs here, thin or with all its space."""
    words.check_form(args)
    if args.has("merge"):
        merge(args, path, server)
    if _only_said(args, f"Converting {path}"):
        return 0
    server.run("Image.Convert", path=path, format="preallocated")
    server.run("Image.Reserve" if args.has("plain") else "Image.Discard", path=path)
    sys.stdout.write("The virtual disk has been converted.\n")
    return 0


def merge(args: Arguments, path: str, server: Server) -> int:
    """Delete all snapshots; what the disk holds now stays."""
    if _only_said(args, f"Merging the snapshots of {path}"):
        return 0
    shots = server.ask("Image.Snapshots", path=path)["snapshots"]
    if not all(row["current"] for row in shots):
        server.run("Image.Convert", path=path, format="preallocated")
    for row in shots:
        if not row["current"]:
            server.change("Image.SnapshotDelete", path=path, uuid=row["uuid"])
    sys.stdout.write("The snapshots of the virtual disk have been merged.\n")
    return 0


COMMANDS: tuple[tuple[str, str, str, Callable[[Arguments, str, Server], int]], ...] = (
    ("resize", "--size SIZE | --info [--units U]", "resize a disk and what is in it", resize),
    ("compact", "[--info]", "give free space back to the node", compact),
    ("convert", "--plain|--expanding [--merge]", "bring it into the form that runs here", convert),
    ("merge", "", "delete all snapshots of a disk, keep what it holds now", merge),
)


def usage() -> str:
    """Return the usage text."""
    lines = ["Usage: prl_disk_tool COMMAND --hdd DIR [OPTIONS]", "Commands:"]
    lines += [f"  {name + ' ' + rest:<42} {text}" for name, rest, text, _ in COMMANDS]
    lines.append("Options:")
    for names, metavar, text in OPTIONS:
        left = names.replace(",", ", ") + (f" {metavar}" if metavar else "")
        lines.append(f"  {left:<30} {text}")
    return "\n".join(lines) + "\n"
