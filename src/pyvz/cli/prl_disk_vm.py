"""prl_disk_tool: the commands for images of virtual machines."""

from __future__ import annotations

import sys

from pyvz.cli.ploop_size import SECTOR, parse_size
from pyvz.errors import Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvz.cli.arguments import Arguments
    from pyvz.cli.server import Server

    Command = Callable[[Arguments, str, Server], int]


def resize(args: Arguments, path: str, server: Server) -> int:
    """Make a disk larger; or show its size."""
    if args.has("info"):
        return _resize_info(args, path, server)
    text = args.value("size")
    if text is None:
        raise UsageError("Target size not found", details="A size is not specified (--size).")
    size = parse_size(text, "M") >> 20 << 20
    if not args.has("dry-run"):
        server.change("Hdd.Resize", path=path, size=size)
        sys.stdout.write("Operation progress 100 %\nThe virtual disk has been resized.\n")
        if args.has("resize_partition"):
            sys.stdout.write(
                "Its partitions are as they were: the guest extends them (growpart, cloud-init).\n"
            )
    return 0


def _resize_info(args: Arguments, path: str, server: Server) -> int:
    unit = args.value("units") or "M"
    if unit not in ("K", "M", "G", "T"):
        raise UsageError("Cannot parse units", details=f"{unit} is none of K, M, G, T.")
    size = f"{server.ask('Hdd.Info', path=path)['facts']['size'] // parse_size('1' + unit)}{unit}"
    tabs = "\t" * 6
    sys.stdout.write(
        f"Disk information:\n\tSize:{tabs}{size}\n\tMinimum:{tabs[1:]}{size}\n"
        f"\tMinimum without resizing the last partition:\t{size}\n"
    )
    return 0


def compact(args: Arguments, path: str, server: Server) -> int:
    """Give back what is zeros or was discarded; or show how much of the disk takes space."""
    if args.has("info"):
        found = server.ask("Hdd.Info", path=path)["facts"]
        block = found["blocksize"]
        taken = -(-found["allocated"] // block)
        for title, number in (
            ("Block size:       ", block // SECTOR),
            ("Total blocks:     ", found["size"] // block),
            ("Allocated blocks: ", taken),
            ("Used blocks:      ", taken),
        ):
            sys.stdout.write(f"        {title}{number}\n")
    elif not args.has("dry-run"):
        freed = server.run("Hdd.Convert", path=path)["freed"]
        sys.stdout.write(f"The virtual disk has been compacted: {freed >> 20} MB were freed.\n")
    return 0


def convert(args: Arguments, path: str, server: Server) -> int:
    """Have a disk take space as it is needed, or the space of all of it."""
    if args.has("split"):
        raise Unsupported("A disk in several parts is not supported")
    if args.has("plain") == args.has("expanding"):
        raise UsageError("Either --plain or --expanding must be specified")
    if args.has("merge"):
        merge(args, path, server)
    if not args.has("dry-run"):
        server.run("Hdd.Convert", path=path, plain=args.has("plain"))
        sys.stdout.write("The virtual disk has been converted.\n")
    return 0


def merge(args: Arguments, path: str, server: Server) -> int:
    """Delete the snapshots inside an image."""
    if not args.has("dry-run"):
        server.change("Hdd.Merge", path=path)
        sys.stdout.write("The snapshots of the virtual disk have been merged.\n")
    return 0


COMMANDS: dict[str, Command] = {
    "resize": resize,
    "compact": compact,
    "convert": convert,
    "merge": merge,
}
