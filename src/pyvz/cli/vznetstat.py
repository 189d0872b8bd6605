"""vznetstat: what containers have sent and received, by class of traffic."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import PermissionDenied, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("-4", "", "only IPv4"),
    ("-6", "", "only IPv6"),
    ("-v,--veid", "CTID|NAME", "only this container"),
    ("-c,--class", "CLASS", "only this class (0 to 15)"),
    ("-a,--all", "", "also containers and classes without traffic"),
    ("-r,--reset", "", "count from zero again afterwards"),
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)
HEADER = "UUID", "Net.Class", "Input(bytes)", "Input(pkts)", "Output(bytes)", "Output(pkts)"
_WIDTHS = (36, 9, 20, 14, 20, 14)
_NUMBERS = ("bytes_in", "packets_in", "bytes_out", "packets_out")


def main(argv: Sequence[str]) -> int:
    """Run vznetstat with the words after the program's name; return the exit code."""
    return run("vznetstat", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and print the table."""
    if argv and argv[0] == "--version":
        sys.stdout.write(f"vznetstat version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv)
    args.no_more_words()
    if args.has("help"):
        from pyvz.cli.usage import vznetstat_usage  # noqa: PLC0415

        sys.stdout.write(vznetstat_usage())
        return 0
    number = _class(args)
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    refs = [args.value("veid")] if args.has("veid") else []
    versions = "4" if args.has("4") and not args.has("6") else "46"
    versions = "6" if args.has("6") and not args.has("4") else versions
    with Server("vznetstat") as server:
        rows = server.ask("Traffic.List", refs=refs, versions=versions)["rows"]
        if number is not None:
            rows = [row for row in rows if row["number"] == number]
        if not args.has("all"):
            rows = [row for row in rows if any(row[name] for name in _NUMBERS)]
        sys.stdout.write(table(rows))
        if args.has("reset"):
            for uuid in dict.fromkeys(row["uuid"] for row in rows):
                server.change("Traffic.Reset", ref=uuid)
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the lines, the header first."""
    lines = [HEADER]
    lines += [
        (row["uuid"], str(row["number"]), *(str(row[name]) for name in _NUMBERS)) for row in rows
    ]
    return "".join(
        " ".join(
            f"{word:<{width}}" if index == 0 else f"{word:>{width}}"
            for index, (word, width) in enumerate(zip(line, _WIDTHS, strict=True))
        )
        + "\n"
        for line in lines
    )


def _class(args: Arguments) -> int | None:
    word = args.value("class")
    if word is None:
        return None
    if not word.isdecimal() or int(word) > 15:
        raise UsageError(f"--class: '{word}' is not a class of traffic (0 to 15)")
    return int(word)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
