"""prl_disk_tool: virtual disks by their directory, as Virtuozzo's tool has it."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.ploop_size import parse_size
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import Unsupported, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvz.cli.arguments import Arguments, OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("--hdd", "DIR", "the disk: the directory with its DiskDescriptor.xml"),
    ("--size", "SIZE", "resize: with the suffix K, M, G, T (default: M)"),
    ("--resize_partition", "", "resize: the partition and file system too"),
    ("--plain", "", "convert: a disk whose space is taken at once"),
    ("--expanding", "", "convert: a disk that takes space as it is needed"),
    ("-i,--info", "", "only show the sizes"),
    ("--units", "K|M|G|T", "of the sizes shown (default: M)"),
    ("-f,--force", "", "accepted, no effect"),
    ("--no-space-check", "", "accepted, no effect"),
    ("--external", "", "accepted, no effect"),
    ("--merge", "", "convert: without its snapshots"),
    ("--split", "", "not supported"),
    ("--help", "", "show this"),
)


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
    name = args.word("A command")
    functions = {row[0]: row[3] for row in COMMANDS}
    if name not in functions:
        raise UsageError(f"Unknown command: {name}", hint="prl_disk_tool --help lists them.")
    path = args.value("hdd")
    if path is None:
        raise UsageError("A disk is not specified (--hdd)")
    with Server("prl_disk_tool") as server:
        return functions[name](args, os.path.abspath(path), server)


def resize(args: Arguments, path: str, server: Server) -> int:
    """Resize a disk."""
    if args.has("info"):
        return _info(args, path, server)
    text = args.value("size")
    if text is None:
        raise UsageError("A size is not specified (--size)")
    # As the original: the file system follows only when it is asked for.
    server.run(
        "Image.Resize",
        path=path,
        size=parse_size(text, "M"),
        filesystem=args.has("resize_partition"),
    )
    sys.stdout.write("Operation progress 100 %\nThe virtual disk has been resized.\n")
    return 0


def compact(args: Arguments, path: str, server: Server) -> int:
    """Give free space back."""
    if args.has("info"):
        return _info(args, path, server)
    freed = server.run("Image.Discard", path=path)["size"]
    sys.stdout.write(f"The virtual disk has been compacted: {freed >> 20} MB were freed.\n")
    return 0


def convert(args: Arguments, path: str, server: Server) -> int:
    """Bring a disk into the form that runs here."""
    if args.has("split"):
        raise Unsupported("A disk in several parts is not supported")
    if args.has("plain") and not args.has("expanding"):
        raise Unsupported(
            "A disk with all its space taken is not made",
            hint="Disks take space as they need it: --expanding. Reserve it with fallocate(1).",
        )
    if args.has("merge"):
        merge(args, path, server)
    server.run("Image.Convert", path=path, format="preallocated")
    sys.stdout.write("The virtual disk has been converted.\n")
    return 0


def merge(args: Arguments, path: str, server: Server) -> int:
    """Delete all snapshots; what the disk holds now stays."""
    del args
    shots = server.ask("Image.Snapshots", path=path)["snapshots"]
    if not all(row["current"] for row in shots):
        server.run("Image.Convert", path=path, format="preallocated")
    for row in shots:
        if not row["current"]:
            server.change("Image.SnapshotDelete", path=path, uuid=row["uuid"])
    sys.stdout.write("The snapshots of the virtual disk have been merged.\n")
    return 0


def _info(args: Arguments, path: str, server: Server) -> int:
    unit = (args.value("units") or "M").upper()
    step = parse_size("1" + unit)
    size = server.ask("Image.Info", path=path)["facts"]["size"]
    used = server.ask("Image.Usage", path=path)["space"]["used"]
    sys.stdout.write(f"Size:\t\t{size // step}{unit}\nUsed:\t\t{-(-used // step)}{unit}\n")
    return 0


COMMANDS: tuple[tuple[str, str, str, Callable[[Arguments, str, Server], int]], ...] = (
    ("resize", "--size SIZE [--resize_partition]", "resize a disk", resize),
    ("compact", "", "give free space back to the node", compact),
    ("convert", "--expanding [--merge]", "bring a disk into the form that runs here", convert),
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
