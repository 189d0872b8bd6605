"""vzstat: node and containers at work, live on a terminal."""

from __future__ import annotations

import os
import sys
import time

from pyvz.cli import arguments
from pyvz.cli.keypress import Keys
from pyvz.cli.nodestat import NodeSample, head, node_sample
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.cli.terminal import size
from pyvz.errors import PermissionDenied, UsageError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

OPTIONS: tuple[OptionRow, ...] = (
    ("-d,--delay", "SECONDS", "time between two screens (default 5)"),
    ("-n,--count", "N", "end after so many screens"),
    ("-t,--text", "", "no screen: lines, one table after the other (once without -n)"),
    ("-s,--sort", "COLUMN", "cpu (default), mem, swap, proc, read, write, fail or name"),
    ("-a,--all", "", "also containers that do not run"),
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)
FIELDS = ("uuid", "name", "status", "cpulimit", "cpus", "physpages", "swappages", "numproc")
COUNTERS = ("guest.cpu.time", "devices.disk.*")
SORTS = ("cpu", "mem", "swap", "proc", "read", "write", "fail", "name")
_STATES = {"running": "OK", "paused": "PA", "stopped": "DN", "mounted": "MN", "suspended": "SU"}
_UNLIMITED = 1 << 62
_PAGE = 4096
_CLEAR = "\x1b[H\x1b[2J"
_HELP = "q: quit   c m w p r t f n: sort by CPU memory swap processes read write fails name"
_KEYS = dict(zip("cmwprtfn", SORTS, strict=True))


def main(argv: Sequence[str]) -> int:
    """Run vzstat with the words after the program's name; return the exit code."""
    return run("vzstat", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Parse ARGV and show screens until a key, a signal or the count ends it."""
    if argv and argv[0] == "--version":
        sys.stdout.write(f"vzstat version {VERSION}\n")
        return 0
    args = arguments.parse(OPTIONS, argv)
    if args.has("help"):
        from pyvz.cli.usage import plain_usage  # noqa: PLC0415

        synopsis = "vzstat [-d SECONDS] [-n N] [-t] [-s COLUMN] [-a] [CTID|NAME...]"
        sys.stdout.write(plain_usage(synopsis, OPTIONS))
        return 0
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    with Server("vzstat") as server:
        return _show(server, args)


def _show(server: Server, args: Arguments) -> int:
    text = args.has("text") or not os.isatty(1)
    count = _number(args, "count", 1 if text else 0)
    delay = float(_number(args, "delay", 1 if text else 5))
    order = args.value("sort") or "cpu"
    if order not in SORTS:
        raise UsageError(f"--sort: '{order}' is not one of {', '.join(SORTS)}")
    last = _look(server, args.words)
    shown = 0
    with Keys() as keys:
        key = keys.wait(min(delay, 1.0))
        while key not in ("q", "Q"):
            order = _KEYS.get(key, order)
            now = _look(server, args.words)
            rows = ordered(rates(last, now), order)
            if not args.has("all"):
                rows = [row for row in rows if row["state"] in ("OK", "PA")]
            _write(last.node, now.node, rows, text=text)
            last = now
            shown += 1
            if shown == count:
                break
            key = keys.wait(delay)
    return 0


def _number(args: Arguments, name: str, default: int) -> int:
    word = args.value(name)
    if word is None:
        return default
    if not word.isdecimal() or int(word) < 1:
        raise UsageError(f"--{name}: '{word}' is not a number above 0")
    return int(word)


class Look:
    """What was seen at one moment."""

    def __init__(self, node: NodeSample, rows: list[dict[str, Any]]) -> None:
        self.at = time.monotonic()
        self.node = node
        self.rows = {str(row["uuid"]): row for row in rows}


def _look(server: Server, refs: list[str]) -> Look:
    rows = server.ask("Environment.List", refs=refs, fields=list(FIELDS))["rows"]
    counted = server.ask("Environment.Statistics", refs=refs, filters=list(COUNTERS))
    totals = {
        str(entry["uuid"]): {row["name"]: int(row["value"]) for row in entry["rows"]}
        for entry in counted["statistics"]
    }
    for row in rows:
        row["counters"] = totals.get(str(row["uuid"]), {})
    return Look(node_sample(), rows)


def rates(last: Look, now: Look) -> list[dict[str, Any]]:
    """Return a row for each environment: what it uses, and what it did a second since LAST."""
    seconds = max(now.at - last.at, 0.001)
    found = []
    for uuid, row in now.rows.items():
        before = last.rows.get(uuid, {}).get("counters", {})

        def each(name: str, row: Any = row, before: Any = before) -> float:
            value = row["counters"].get(name)
            # One that has been started anew counts from zero again.
            return 0.0 if value is None else max(value - before.get(name, value), 0) / seconds

        memory, swap, processes = row["physpages"], row["swappages"], row["numproc"]
        found.append(
            {
                "name": row["name"],
                "state": _STATES.get(str(row["status"]), "??"),
                "cpu": each("guest.cpu.time") / 10_000,
                "cpu_limit": row["cpulimit"] or (row["cpus"] or 0) * 100,
                "mem": _held(memory) * _PAGE,
                "mem_limit": _limit(memory) * _PAGE,
                "swap": _held(swap) * _PAGE,
                "proc": _held(processes),
                "proc_limit": _limit(processes),
                "read": each("devices.disk.read_total"),
                "write": each("devices.disk.write_total"),
                "fail": sum((x or {}).get("failcnt") or 0 for x in (memory, swap, processes)),
            }
        )
    return found


def _held(counter: dict[str, Any] | None) -> int:
    return int((counter or {}).get("held") or 0)


def _limit(counter: dict[str, Any] | None) -> int:
    """Return the limit, 0 for none."""
    value = int((counter or {}).get("limit") or 0)
    return 0 if value >= _UNLIMITED else value


def ordered(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Return the rows, what uses most first (names in their order)."""
    by_name = sorted(rows, key=lambda row: str(row["name"]))
    return by_name if column == "name" else sorted(by_name, key=lambda row: -row[column])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the containers, the heading first."""
    lines = [
        f"{'NAME':<24} ST {'%CPU/LIMIT':>13} {'MEM/LIMIT':>15} {'SWAP':>7} {'PROC/LIMIT':>13}"
        f" {'READ/s':>8} {'WRITE/s':>8} {'FCNT':>6}"
    ]
    lines += [
        f"{row['name'][:24]:<24} {row['state']:<2}"
        f" {row['cpu']:>7.1f}/{row['cpu_limit'] or '-':<5}"
        f" {short(row['mem']):>7}/{short(row['mem_limit']) if row['mem_limit'] else '-':<7}"
        f" {short(row['swap']):>7} {row['proc']:>6}/{row['proc_limit'] or '-':<6}"
        f" {short(row['read']):>8} {short(row['write']):>8} {row['fail']:>6}"
        for row in rows
    ]
    return lines


def short(value: float) -> str:
    """Return a size as people read it: 512, 1.5K, 23M."""
    for unit in ("", "K", "M", "G"):
        if value < 1000:
            return f"{value:.0f}{unit}" if unit == "" or value >= 10 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def _write(
    last: NodeSample, now: NodeSample, rows: Sequence[dict[str, Any]], *, text: bool
) -> None:
    lines = [*head(last, now), *table(rows)]
    if not text:
        height, width = size(1)
        lines = [line[:width] for line in lines[: height - 2]] + [_HELP[:width]]
        sys.stdout.write(_CLEAR)
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
