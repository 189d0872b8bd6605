"""vzubc: the user beancounters of containers, in the form of /proc/user_beancounters."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import EnvironmentNotFound, PermissionDenied
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("-q,--quiet", "", "only counters that have refused something"),
    ("-a,--all", "", "also containers that do not run"),
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)
NAMES = (
    "kmemsize", "lockedpages", "privvmpages", "shmpages", "numproc", "physpages", "vmguarpages",
    "oomguarpages", "numtcpsock", "numflock", "numpty", "numsiginfo", "tcpsndbuf", "tcprcvbuf",
    "othersockbuf", "dgramrcvbuf", "numothersock", "dcachesize", "numfile", "numiptent",
    "swappages",
)  # fmt: skip
_COLUMNS = ("held", "maxheld", "barrier", "limit", "failcnt")
_RUNNING = ("running", "paused", "starting", "stopping")


def main(argv: Sequence[str]) -> int:
    """Run vzubc with the words after the program's name; return the exit code."""
    return run("vzubc", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and print the table."""
    if argv and argv[0] == "--version":
        sys.stdout.write(f"vzubc version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv)
    if args.has("help"):
        from pyvz.cli.usage import plain_usage  # noqa: PLC0415

        sys.stdout.write(plain_usage("vzubc [-q] [-a] [CTID|NAME...]", OPTIONS))
        return 0
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    with Server("vzubc") as server:
        fields = ["envid", "status", *NAMES]
        reply = server.ask("Environment.List", refs=args.words, fields=fields)
    for error in reply["errors"]:
        raise EnvironmentNotFound(str(error["message"]))
    rows = reply["rows"]
    if not args.has("all") and not args.words:
        rows = [row for row in rows if row["status"] in _RUNNING]
    sys.stdout.write(table(rows, quiet=args.has("quiet")))
    return 0


def table(rows: Sequence[dict[str, Any]], *, quiet: bool = False) -> str:
    """Return the file's text; quiet: only lines with a failcnt."""
    width = max([10, *(len(str(row["envid"])) for row in rows)])
    lines = ["Version: 2.5", _line(" " * (width - 3) + "uid", "resource", _COLUMNS)]
    for row in rows:
        first = f"{row['envid']:>{width}}:"
        for name in NAMES:
            found = row.get(name)
            if not isinstance(found, dict) or (quiet and not found["failcnt"]):
                continue
            values = [found[column] for column in _COLUMNS]
            words = ["0" if value is None else str(value) for value in values]
            lines.append(_line(first, name, words))
            first = " " * (width + 1)
    return "\n".join(lines) + "\n"


def _line(uid: str, name: str, words: Sequence[str]) -> str:
    return f"{uid:<11} {name:<12} " + " ".join(f"{word:>20}" for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
