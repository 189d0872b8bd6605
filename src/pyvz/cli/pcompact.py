"""pcompact: give the unused space of containers' disks back to the node; for cron, or by hand.

/etc/vz/pcompact.conf      THRESHOLD=10      percent of a disk that have to be unused for it
"""

from __future__ import annotations

import os
import sys
import time

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.cli.usage import plain_usage
from pyvz.errors import BadValue, PermissionDenied, VZError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("-v,--verbose", "", "tell of every disk, also of those that stay as they are"),
    ("-n,--dry-run", "", "only tell which disks would be compacted"),
    ("-s,--stat", "", "only print the numbers"),
    ("-t,--timeout", "SECONDS", "begin with no further container after that time"),
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)
SYNOPSIS = "pcompact [-v] [-n] [-s] [-t SECONDS]"
THRESHOLD = 10
_ROW = "{:<36} {:<10} {:>14} {:>14} {:>14} {:>7}"


def main(argv: Sequence[str]) -> int:
    """Run pcompact with the words after the program's name; return the exit code."""
    return run("pcompact", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and compact what is worth it."""
    if argv == ["--version"]:
        sys.stdout.write(f"pcompact version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv)
    args.no_more_words()
    if args.has("help"):
        sys.stdout.write(plain_usage(SYNOPSIS, OPTIONS))
        return 0
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    end = _deadline(args.value("timeout"))
    least = threshold(_conf())
    failed = False
    if args.has("stat"):
        print(_ROW.format("CTID", "DISK", "SIZE", "ALLOCATED", "USED", "UNUSED"))
    with Server("pcompact") as server:
        rows = server.ask("Environment.List", refs=[], fields=["uuid"], kind="ct")["rows"]
        for uuid in (str(row["uuid"]) for row in rows):
            if time.monotonic() > end:
                print("The time is over.")
                break
            try:
                _one(server, uuid, least, _Wish(args.has("verbose"), args.has("dry-run"),
                                                args.has("stat")))  # fmt: skip
            except VZError as error:
                failed = True
                sys.stderr.write(f"{uuid}: {error.message}\n")
    return 1 if failed else 0


class _Wish:
    """What the options ask for."""

    def __init__(self, verbose: bool, dry: bool, stat: bool) -> None:  # noqa: FBT001
        self.verbose, self.dry, self.stat = verbose, dry, stat


def _one(server: Server, uuid: str, least: int, wish: _Wish) -> None:
    disks = server.ask("Storage.Unused", ref=uuid)["disks"]
    if wish.stat:
        for disk in disks:
            numbers = (disk["size"], disk["allocated"], disk["used"], f"{percent(disk)}%")
            print(_ROW.format(uuid, disk["name"], *numbers))
        return
    worth = [disk for disk in disks if percent(disk) > least and disk["autocompact"]]
    for disk in disks:
        if disk in worth or wish.verbose:
            does = "compact" if disk in worth else "stays"
            print(f"{uuid} {disk['name']}: {percent(disk)}% unused: {does}")
    if worth and not wish.dry:
        freed = server.run("Storage.Compact", ref=uuid)["freed"]
        print(f"{uuid}: {freed >> 20} MiB were freed")


def percent(disk: dict[str, Any]) -> int:
    """Return how much of a disk takes space of the node and is not used inside, in percent."""
    return int(max(0, disk["allocated"] - disk["used"]) * 100 // max(1, disk["size"]))


def threshold(text: str) -> int:
    """Return THRESHOLD of the configuration; DELTA and DEFRAG have no meaning here."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == "THRESHOLD":
            number = value.split("#")[0].strip().strip("\"'")
            if not (number.isascii() and number.isdigit() and int(number) <= 100):
                raise BadValue(f"THRESHOLD={value} in pcompact.conf is no percentage")
            return int(number)
    return THRESHOLD


def _conf() -> str:
    try:
        path = os.path.join(os.environ.get("PYVZ_ROOT", "/"), "etc/vz/pcompact.conf")
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except FileNotFoundError:
        return ""


def _deadline(text: str | None) -> float:
    if text is None:
        return float("inf")
    if not (text.isascii() and text.isdigit()):
        raise BadValue(f"-t: '{text}' is no number of seconds")
    return time.monotonic() + int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
