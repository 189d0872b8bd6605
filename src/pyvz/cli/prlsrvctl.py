"""prlsrvctl: the node itself."""

from __future__ import annotations

import sys

from pyvz.cli import arguments
from pyvz.cli.exitcodes import exit_code
from pyvz.cli.output import prl_json
from pyvz.cli.prlctl import GLOBAL as _PRLCTL_GLOBAL
from pyvz.cli.prlctl import check_login
from pyvz.cli.prlctl_info import plain_value
from pyvz.cli.program import failed, run, tell
from pyvz.cli.server import Server
from pyvz.cli.subject import Subject
from pyvz.errors import Cancelled, DaemonUnreachable, Unsupported, UsageError, VZError
from pyvz.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow

VERBS: tuple[tuple[str, str, str], ...] = (
    ("info", "", "print what the node is and can do"),
    ("statistics", "", "print performance counters of the environments"),
    ("cttemplate", "list", "list the templates of containers"),
    ("pool", "ACTION [NAME]", "storage pools: add, list, info, set, delete"),
    (
        "backup",
        "",
        "back up every environment",
    ),
    ("set", "", "change the node: traffic shaping"),
    ("tc", "restart", "put the rates and classes of traffic in force again"),
    ("net", "ACTION [NETWORK]", "virtual networks: list, info, add, set, del"),
    ("privnet", "ACTION [NETWORK]", "IP private networks: list, add, set, del"),
    ("shutdown,stop", "", "end vzd; environments run on"),
)

LATER = (
    *("user", "usb", "install-license"),
    *("update-license", "problem-report", "plugin", "monitor"),
)

GLOBAL: tuple[OptionRow, ...] = tuple(row for row in _PRLCTL_GLOBAL if row[0] != "--compat")

OPTIONS: dict[str, tuple[OptionRow, ...]] = {
    "info": (
        ("-j,--json", "", "as JSON"),
        ("-f,--full", "", "also CPU model and backup details"),
        ("-l,--license", "", "the licence: there is none, and none is needed"),
    ),
    "statistics": (
        ("-a,--all", "", "accepted, no effect: all environments are shown"),
        ("-l,--loop", "", "again every second, until Ctrl-C"),
        ("--filter", "+PATTERN", "only counters whose name matches"),
    ),
    "cttemplate": (("-j,--json", "", "as JSON"),),
    "shutdown": (("-f,--force", "", "also while operations run; they are called off"),),
}

# Verbs of other modules, each imported when it is called: (module, its options, its function).
ELSEWHERE = {
    "pool": ("prlsrvctl_pool", "OPTIONS", "pool"),
    "net": ("prlsrvctl_net", "OPTIONS", "net"),
    "privnet": ("prlsrvctl_privnet", "OPTIONS", "privnet"),
    "backup": ("prlctl_backup", "CREATE", ""),
    "set": ("prlsrvctl_traffic", "SET_OPTIONS", "set_"),
    "tc": ("prlsrvctl_traffic", "", "tc"),
}


def main(argv: Sequence[str]) -> int:
    """Run prlsrvctl with the words after the program's name; return the exit code."""
    return run("prlsrvctl", dispatch, argv)


def dispatch(argv: list[str]) -> int:
    """Find the verb of ARGV and run it."""
    if not argv or "--help" in argv:
        from pyvz.cli.usage import prlsrvctl_usage  # noqa: PLC0415

        sys.stdout.write(prlsrvctl_usage())
        return 0 if argv else 1
    if argv[0] in {"--version", "-V"}:
        sys.stdout.write(f"prlsrvctl version {VERSION}\n")
        return 0
    verb = _verb(argv[0])
    args = arguments.parse((*options(verb), *GLOBAL), argv[1:])
    check_login(args)
    with Server("prlsrvctl") as server:
        return _handler(verb)(args, server)


def options(verb: str) -> tuple[OptionRow, ...]:
    """Return the options of a verb."""
    module, name, _ = ELSEWHERE.get(verb, ("", "", ""))
    rows: tuple[OptionRow, ...] = getattr(_module(module), name) if name else OPTIONS.get(verb, ())
    return rows


def _handler(verb: str) -> Callable[[Arguments, Server], int]:
    module, _, name = ELSEWHERE.get(verb, ("", "", ""))
    found: Callable[[Arguments, Server], int] = (
        getattr(_module(module), name) if name else _HANDLERS[verb]
    )
    return found


def _module(name: str) -> ModuleType:
    found: ModuleType = getattr(__import__(f"pyvz.cli.{name}").cli, name)
    return found


def _verb(word: str) -> str:
    for names, _, _ in VERBS:
        if word in names.split(","):
            return names.split(",")[0]
    if word in LATER:
        raise Unsupported(
            f"prlsrvctl {word} is not supported yet by this version", hint="Nothing was changed."
        )
    raise UsageError(f"Unrecognized action: {word}", hint="prlsrvctl --help lists the actions.")


def _info(args: Arguments, server: Server) -> int:
    args.no_more_words()
    if args.has("license"):
        sys.stdout.write("Searching for installed licenses...\nNo licenses installed.\n")
        return 0
    info = server.ask("Node.Info", full=args.has("full"))["info"]
    sys.stdout.write(prl_json(info) + "\n" if args.has("json") else info_text(info))
    return 0


def info_text(info: dict[str, Any]) -> str:
    """Return the lines of `info`: the server's keys in order, hardware and features as lists."""
    lines: list[str] = []
    for key, value in info.items():
        if key == "Hardware info":
            lines.append("Hardware info:")
            lines += [_hardware(name, device) for name, device in (value or {}).items()]
        elif key == "Features":
            lines.append("Features:")
            rows = _feature_rows(value)
            width = max([len(name) for name, _, _ in rows], default=0)
            lines += [_feature(*row, width) for row in rows]
        elif key == "License" and isinstance(value, dict):
            lines.append("License:" + "".join(f" {name}='{item}'" for name, item in value.items()))
        else:
            lines += plain_value(key, value)
    return "\n".join(lines) + "\n"


def _hardware(name: str, device: Any) -> str:
    if not isinstance(device, dict):
        return f"  {name}: {device}"
    return f"{device.get('type', '')!s:>8}  {device.get('name', '')!s:<40} '{name}'"


def _feature_rows(features: Any) -> list[tuple[str, Any, str]]:
    """Return (name, value, reason) rows, whether they came as an object or as lists."""
    if isinstance(features, dict):
        return [
            (name, probed.get("value"), str(probed.get("reason") or ""))
            if isinstance(probed, dict)
            else (name, probed, "")
            for name, probed in features.items()
        ]
    return [(str(row[0]), row[1], str(row[2]) if len(row) > 2 else "") for row in features or ()]


def _feature(name: str, value: Any, reason: str, width: int) -> str:
    """Return a probe's result: name, what was found, and why."""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, list):
        value = " ".join(str(item) for item in value)
    return f"  {name:<{width}}  {'-' if value is None else value!s:<18}  {reason}".rstrip()


def _statistics(args: Arguments, server: Server) -> int:
    from pyvz.cli.prlctl_report import statistics_  # noqa: PLC0415

    args.no_more_words()
    if not args.has("all"):
        args.options.append(("all", None))
    return statistics_(args, server)


def _cttemplate(args: Arguments, server: Server) -> int:
    if args.words != ["list"]:
        word = args.words[0] if args.words else ""
        if word in {"remove", "copy"}:
            raise Unsupported(f"prlsrvctl cttemplate {word} is not supported yet by this version")
        raise UsageError("Unrecognized action of cttemplate", hint="prlsrvctl cttemplate list")
    try:
        templates = server.ask("Template.List")["rows"]
    except VZError as error:
        raise failed("get the list of templates", error) from error
    if args.has("json"):
        sys.stdout.write(prl_json([_template(entry) for entry in templates]) + "\n")
    else:
        sys.stdout.write(templates_text([_template(entry) for entry in templates]))
    return 0


def _template(entry: dict[str, Any]) -> dict[str, str]:
    """Return a template with the keys and words of prlsrvctl."""
    system, application = str(entry["os"]), str(entry.get("app") or "")
    return {
        "Name": application or system,
        "Type": "app" if application else "os",
        "Arch": "x86_64" if system.endswith("-x86_64") else system.rpartition("-")[2],
        "Cached": "-" if application else "yes" if entry.get("cached") else "no",
        "Description": str(entry.get("summary") or ""),
    }


def templates_text(templates: list[dict[str, str]]) -> str:
    """Return the table of `cttemplate list`."""
    width = max([len(entry["Name"]) for entry in templates], default=4)
    lines = [f"{'Name':<{width + 1}} Type Arch   Cached Description"]
    lines += [
        f"{entry['Name']:<{width + 1}} {entry['Type']:<5}{entry['Arch']:<7}{entry['Cached']:<7}"
        f"{entry['Description']}".rstrip()
        for entry in templates
    ]
    return "\n".join(lines) + "\n"


def _backup(args: Arguments, server: Server) -> int:
    """Back up one after the other; one that fails does not stop the others."""
    from pyvz.cli.prlctl_backup import make  # noqa: PLC0415

    args.no_more_words()
    result = 0
    listed = server.ask("Environment.List", refs=[], fields=["uuid", "name", "status"], kind="ct")
    for row in listed["rows"]:
        subject = Subject(str(row["uuid"]), "CT", str(row["status"]))
        try:
            make(args, server, subject, str(row["name"]))
        except (Cancelled, UsageError, Unsupported, DaemonUnreachable):
            raise
        except VZError as error:
            tell(error)
            result = exit_code("prlsrvctl", error)
    return result


def _shutdown(args: Arguments, server: Server) -> int:
    args.no_more_words()
    sys.stdout.write("Shut down the server...\n")
    sys.stdout.flush()
    try:
        server.connection.call("Node.Shutdown", force=args.has("force"))
    except VZError as error:
        raise failed("shut down the server", error) from error
    sys.stdout.write("The server has been successfully shut down.\n")
    return 0


_HANDLERS = {
    "info": _info,
    "statistics": _statistics,
    "cttemplate": _cttemplate,
    "backup": _backup,
    "shutdown": _shutdown,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
