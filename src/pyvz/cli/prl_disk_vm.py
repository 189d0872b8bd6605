"""prl_disk_tool: the commands for images of virtual machines."""

from __future__ import annotations

import sys

from pyvz.cli import prl_disk_words as words

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
    size = words.size_wanted(args)
    if not args.has("dry-run"):
        server.change("Hdd.Resize", path=path, size=size)
        sys.stdout.write("Operation progress 100 %\nThe virtual disk has been resized.\n")
        if args.has("resize_partition"):
            sys.stdout.write(
                "Its partitions are as they were: the guest extends them (growpart, cloud-init).\n"
            )
    return 0


def _resize_info(args: Arguments, path: str, server: Server) -> int:
    unit, step = words.unit_wanted(args)
    size = f"{server.ask('Hdd.Info', path=path)['facts']['size'] // step}{unit}"
    words.tell_sizes(size, size)
    return 0


def compact(args: Arguments, path: str, server: Server) -> int:
    """Give back what is zeros or was discarded; or show how much of the disk takes space."""
    if args.has("info"):
        found = server.ask("Hdd.Info", path=path)["facts"]
        taken = found["allocated"]
        words.tell_blocks(found["blocksize"], found["size"], taken, taken)
    elif not args.has("dry-run"):
        freed = server.run("Hdd.Convert", path=path)["freed"]
        sys.stdout.write(f"The virtual disk has been compacted: {freed >> 20} MB were freed.\n")
    return 0


def convert(args: Arguments, path: str, server: Server) -> int:
    """Have a disk take space as it is needed, or the space of all of it."""
    words.check_form(args)
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
