"""vcmmdctl: the memory manager: who is promised how much, and by which policy it is moved."""

from __future__ import annotations

import os
import sys

from pyvz.cli import arguments
from pyvz.cli.program import run
from pyvz.cli.server import Server
from pyvz.errors import (
    AlreadyExists,
    AlreadyRunning,
    BadValue,
    DaemonUnreachable,
    GuaranteeRefused,
    NotRunning,
    PermissionDenied,
    PolicyNotFound,
    UsageError,
    VeNotRegistered,
    VZError,
)
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

UNLIMITED = 9223372036854775807
TYPES = ("CT", "VM", "VM_LIN", "VM_WIN", "SRVC")
LEVELS = ("critical", "error", "warning", "info", "debug")

_FIGURES: tuple[OptionRow, ...] = (
    ("--guarantee", "SIZE", "memory that is never taken from it"),
    ("--limit", "SIZE", "memory that it may use at most"),
    ("--swap", "SIZE", "swap that it may use beside its memory"),
    ("--cache", "SIZE", "page cache that it may use at most (kept and shown, not enforced)"),
    ("--cpunum", "N", "virtual processors that it may use (kept and shown)"),
)
_UNITS: tuple[OptionRow, ...] = (
    ("-b,--bytes", "", "in bytes"),
    ("-k,--kilo", "", "in kilobytes (the default)"),
    ("-m,--mega", "", "in megabytes"),
    ("-g,--giga", "", "in gigabytes"),
    ("-h,--human", "", "with a suffix that fits"),
    ("--si", "", "in powers of 1000, not of 1024"),
)
_JSON: tuple[OptionRow, ...] = (("-j,--json", "", "as JSON, in bytes"),)

VERBS: tuple[tuple[str, str, str], ...] = (
    ("register", "TYPE NAME", "make a VE known and set its guarantee aside"),
    ("activate", "NAME", "manage a registered VE from now on"),
    ("update", "NAME", "change the figures of an active VE, until it stops"),
    ("deactivate", "NAME", "manage a VE no more; its guarantee stays set aside"),
    ("unregister", "NAME", "forget a VE"),
    ("list", "", "list the registered VEs with their figures"),
    ("set-log-level", "|".join(LEVELS), "log from this level on"),
    ("policies", "", "list the policies, the one in force with a star"),
    ("current-policy", "", "print the policy in force"),
    ("set-policy", "POLICY", "change the policy, now and in the configuration file"),
    ("stats", "[NAME]...", "print what VEs use, -1 for what nobody counts"),
    ("get-missing-stats", "[NAME]...", "print what nobody counts of VEs"),
    ("free", "", "print how much memory the node has and has promised"),
    ("config", "", "print the configuration"),
    ("policy-counts", "", "print what the memory manager has done"),
)
OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "register": _FIGURES,
    "update": _FIGURES,
    "list": (*_UNITS, *_JSON),
    "free": (*_UNITS, *_JSON),
    "current-policy": (("-f,--file", "", "the one that the configuration file names"),),
    "config": (("-f,--full", "", "with the defaults"),),
}
GLOBAL: tuple[OptionRow, ...] = (
    ("--help", "", "print how to use it"),
    ("--debug", "", "print the traceback of an error"),
)

# The words of the original for an error (vcmmd/error.py, by meaning); ours follow.
TEXTS: tuple[tuple[type[VZError], str], ...] = (
    (GuaranteeRefused, "Unable to apply VE guarantee"),
    (VeNotRegistered, "VE not registered"),
    (PolicyNotFound, "Set policy failed(policy name is invalid)"),
    (AlreadyExists, "VE name already in use"),
    (AlreadyRunning, "VE already active"),
    (NotRunning, "VE not active"),
    (BadValue, "Invalid VE configuration"),
    (VZError, "VE operation failed"),
)
_SIZES = (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10))
_FIELDS = ("name", "type", "active", "guarantee", "limit", "swap", "cache", "cpunum")
_LOCAL = (UsageError, PermissionDenied, DaemonUnreachable)


def main(argv: Sequence[str]) -> int:
    """Run vcmmdctl with the words after the program's name; return the exit code."""
    return run("vcmmdctl", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the command of ARGV and run it."""
    if not argv or argv[0] == "--help" or (len(argv) > 1 and "--help" in argv):
        from pyvz.cli.usage import vcmmdctl_usage  # noqa: PLC0415

        (sys.stdout if argv else sys.stderr).write(vcmmdctl_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        sys.stdout.write(f"vcmmdctl version {VERSION}\n")
        return 0
    verb = argv[0]
    if verb not in _HANDLERS:
        raise UsageError(f"invalid command: {verb}", hint="vcmmdctl --help lists the commands.")
    args = arguments.parse((*OPTIONS.get(verb, ()), *GLOBAL), argv[1:])
    if os.geteuid() != 0:
        raise PermissionDenied("This program can be run by root only.")
    with Server("vcmmdctl") as server:
        try:
            return _HANDLERS[verb](args, server)
        except BadValue as error:
            raise _reworded(error) from error
        except _LOCAL:
            raise
        except VZError as error:
            raise _reworded(error) from error


def _reworded(error: VZError, text: str = "") -> VZError:
    """Return ERROR in the words of the original, ours as the first line of details."""
    if not error.message.startswith("VCMMD returned error"):
        text = text or next(words for kind, words in TEXTS if isinstance(error, kind))
        error.details = "\n".join(filter(None, (error.message, error.details)))
        error.message = f"VCMMD returned error: {text}"
    return error


def _register(args: Arguments, server: Server) -> int:
    if not args.words:
        raise UsageError("VE type not specified")
    kind = args.words[0].upper()
    if kind not in TYPES:
        raise UsageError(f"invalid VE type: {args.words[0]}", hint="One of " + ", ".join(TYPES))
    if len(args.words) < 2:
        raise UsageError("VE name not specified")
    args.no_more_words(2)
    server.change("Memory.Register", name=args.words[1], type=kind, config=figures(args))
    return 0


def _update(args: Arguments, server: Server) -> int:
    server.change("Memory.Update", name=args.word("VE name"), config=figures(args))
    return 0


def _named(method: str) -> Callable[[Arguments, Server], int]:
    def handle(args: Arguments, server: Server) -> int:
        server.change(method, name=args.word("VE name"))
        return 0

    return handle


def figures(args: Arguments) -> dict[str, int | None]:
    """Return the figures that were given; a negative size means no limit."""
    found: dict[str, int | None] = {}
    for row in _FIGURES:
        key = row[0].removeprefix("--")
        text = args.value(key)
        found[key] = None if text is None else _size(key, text) if key != "cpunum" else _count(text)
    return found


def _size(key: str, text: str) -> int:
    digits, unit = text.lower(), 1
    for suffix, factor in _SIZES:
        if digits.endswith(suffix):
            digits, unit = digits[:-1], factor
            break
    try:
        size = int(digits, 0) * unit
    except ValueError:
        raise UsageError(f"option --{key}: invalid memsize value: {text}") from None
    return UNLIMITED if size < 0 else min(size, UNLIMITED)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"option --cpunum: invalid integer value: {text}")
    return int(text)


def _list(args: Arguments, server: Server) -> int:
    args.no_more_words()
    ves = server.ask("Memory.List")["ves"]
    if args.has("json"):
        _print_json([{field: ve[field] for field in _FIELDS} for ve in ves])
    else:
        sys.stdout.write(table(ves, args))
    return 0


def table(ves: Sequence[dict[str, Any]], args: Arguments) -> str:
    """Return the lines of `list`."""
    name = max([len(ve["name"]) for ve in ves], default=12)
    width = 11 if args.has("bytes") else 9
    rows = [_FIELDS]
    rows += [
        (
            ve["name"],
            ve["type"],
            "yes" if ve["active"] else "no",
            *(amount(ve[field], args) for field in _FIELDS[3:7]),
            str(ve["cpunum"]),
        )
        for ve in ves
    ]
    return "".join(
        f"{row[0]:<{name}} {row[1]:>6} {row[2]:>6} "
        + " ".join(f"{word:>{width}}" for word in row[3:])
        + "\n"
        for row in rows
    )


def amount(size: int, args: Arguments) -> str:
    """Return a size in the unit that was asked for."""
    if size >= UNLIMITED:
        return "max"
    base = 1000 if args.has("si") else 1024
    if args.has("human"):
        for power, suffix in ((3, "G"), (2, "M"), (1, "K")):
            if size >= base**power:
                return _decimal(size / base**power) + suffix
        return _decimal(float(size)) + "B"
    powers = (("bytes", 0), ("kilo", 1), ("mega", 2), ("giga", 3))
    return str(size // base ** next((power for key, power in powers if args.has(key)), 1))


def _decimal(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _free(args: Arguments, server: Server) -> int:
    args.no_more_words()
    found = server.ask("Memory.Free")["free"]
    if args.has("json"):
        _print_json(found)
        return 0
    values = [str(v) if "cpu" in k else amount(v, args) for k, v in found.items()]
    for row in (list(found), values):
        cells = (f"{word:<{len(key) + 3}}" for word, key in zip(row, found, strict=True))
        sys.stdout.write(" ".join(cells) + "\n")
    return 0


def _stats(args: Arguments, server: Server) -> int:
    return _each(args, server, lambda found: " ".join(f"{k}={v}" for k, v in found.items()))


def _missing(args: Arguments, server: Server) -> int:
    return _each(args, server, lambda found: " ".join(k for k, v in found.items() if v == -1))


def _each(args: Arguments, server: Server, shown: Callable[[dict[str, int]], str]) -> int:
    """Print a line for each VE; one that fails is told on stderr, and the others are printed."""
    names = args.words or [str(ve["name"]) for ve in server.ask("Memory.List")["ves"]]
    for name in names:
        try:
            found = server.ask("Memory.Stats", name=name)["stats"]
        except _LOCAL:
            raise
        except VZError as error:
            sys.stdout.flush()
            sys.stderr.write(f"{name}: {_reworded(error).message}\n")
            continue
        sys.stdout.write(f"{name}: {shown(found)}\n")
    return 0


def _policies(args: Arguments, server: Server) -> int:
    args.no_more_words()
    found = server.ask("Memory.Policy")
    for name in found["all"]:
        sys.stdout.write(f"{'*' if name == found['runtime'] else ' '} {name}\n")
    return 0


def _current(args: Arguments, server: Server) -> int:
    args.no_more_words()
    found = server.ask("Memory.Policy")
    sys.stdout.write(f"{found['file' if args.has('file') else 'runtime']}\n")
    return 0


def _set_policy(args: Arguments, server: Server) -> int:
    name = args.word("policy name")
    try:
        server.change("Memory.SetPolicy", policy=name)
    except BadValue as error:
        raise _reworded(
            error,
            "Set policy failed(you have to shutdown all VEs before policy switching)",
        ) from error
    return 0


def _log_level(args: Arguments, server: Server) -> int:
    level = args.word("logging level")
    if level not in LEVELS:
        raise UsageError(f"invalid value for logging level: {level}")
    server.change("Memory.SetLogLevel", level=level)
    return 0


def _config(args: Arguments, server: Server) -> int:
    args.no_more_words()
    _print_json(server.ask("Memory.Config", full=args.has("full"))["config"])
    return 0


def _counts(args: Arguments, server: Server) -> int:
    args.no_more_words()
    _print_json(server.ask("Memory.PolicyCounts")["counts"])
    return 0


def _print_json(value: Any) -> None:
    import json  # noqa: PLC0415

    sys.stdout.write(json.dumps(value, sort_keys=True, indent=4) + "\n")


_HANDLERS: dict[str, Callable[[Arguments, Server], int]] = {
    "register": _register,
    "activate": _named("Memory.Activate"),
    "update": _update,
    "deactivate": _named("Memory.Deactivate"),
    "unregister": _named("Memory.Unregister"),
    "list": _list,
    "set-log-level": _log_level,
    "policies": _policies,
    "current-policy": _current,
    "set-policy": _set_policy,
    "stats": _stats,
    "get-missing-stats": _missing,
    "free": _free,
    "config": _config,
    "policy-counts": _counts,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
