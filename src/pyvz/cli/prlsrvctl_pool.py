"""prlsrvctl pool: storage pools.  The words are ours; the original has no pools."""

from __future__ import annotations

import os
import sys

from pyvz.cli.output import prl_json
from pyvz.cli.program import failed
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

ACTIONS = "add NAME | list | info NAME | set NAME | delete NAME"

OPTIONS: tuple[OptionRow, ...] = (
    ("--driver", "DRIVER", "storage driver of new containers in the pool (add, set)"),
    ("--path", "PATH", "the pool's directory; it must exist (add)"),
    ("--option", "+NAME=VALUE", "an option of the pool: floor=SIZE, quota=yes; NAME= removes it"),
    ("--default", "", "make new containers here unless --pool says else (add, set)"),
    ("-j,--json", "", "as JSON (list, info)"),
)

_UNITS = ("B", "K", "M", "G", "T")


def pool(args: Arguments, server: Server) -> int:
    """Do what the word after `pool` says."""
    action, *rest = args.words or [""]
    handler = _HANDLERS.get(action)
    if handler is None:
        raise UsageError("Unrecognized action of pool", hint=f"prlsrvctl pool {ACTIONS}")
    if len(rest) != (0 if action == "list" else 1):
        raise UsageError(f"The name of the pool is {'needed' if not rest else 'not one word'}")
    return handler(args, server, rest[0] if rest else "")


def _add(args: Arguments, server: Server, name: str) -> int:
    driver, path = args.value("driver"), args.value("path")
    if not driver or not path:
        raise UsageError("--driver and --path are needed")
    try:
        server.change(
            "Pool.Add",
            name=name,
            driver=driver,
            path=os.path.abspath(path),
            options=",".join(args.values("option")),
            default=args.has("default"),
        )
    except VZError as error:
        raise failed(f"add the storage pool {name}", error) from error
    sys.stdout.write(f"The storage pool {name} has been successfully added.\n")
    return 0


def _set(args: Arguments, server: Server, name: str) -> int:
    if args.has("path"):
        raise UsageError("The path of a pool cannot be changed", hint="Add another pool.")
    try:
        server.change(
            "Pool.Set",
            name=name,
            options=",".join(args.values("option")),
            driver=args.value("driver"),
            default=True if args.has("default") else None,
        )
    except VZError as error:
        raise failed(f"configure the storage pool {name}", error) from error
    sys.stdout.write(f"The storage pool {name} has been successfully configured.\n")
    return 0


def _delete(args: Arguments, server: Server, name: str) -> int:
    del args
    try:
        server.change("Pool.Delete", name=name)
    except VZError as error:
        raise failed(f"delete the storage pool {name}", error) from error
    sys.stdout.write(f"The storage pool {name} has been successfully deleted.\n")
    return 0


def _list(args: Arguments, server: Server, name: str) -> int:
    del name
    pools = _ask(server, volumes=False)
    if args.has("json"):
        sys.stdout.write(prl_json([_described(each) for each in pools]) + "\n")
    else:
        sys.stdout.write(table(pools))
    return 0


def _info(args: Arguments, server: Server, name: str) -> int:
    (found,) = _ask(server, name)
    if args.has("json"):
        sys.stdout.write(prl_json(_described(found, volumes=True)) + "\n")
    else:
        sys.stdout.write(info_text(found))
    return 0


def _ask(server: Server, *names: str, volumes: bool = True) -> list[dict[str, Any]]:
    wanted = list(names) or None
    try:
        found = server.ask("Pool.List", names=wanted, volumes=volumes)
    except VZError as error:
        raise failed("get the storage pools", error) from error
    pools: list[dict[str, Any]] = found["pools"]
    return pools


def table(pools: Sequence[dict[str, Any]]) -> str:
    """Return the table of `pool list`; the default pool is marked with *."""
    rows = [("NAME", "DRIVER", "STATUS", "TOTAL", "FREE", "CTS", "PATH")]
    for each in pools:
        name = each["name"] + "*" * bool(each["default"])
        if each["problem"]:
            rows.append((name, each["driver"] or "-", "broken", "-", "-", "-", each["path"]))
        else:
            sizes = (size(each["total"]), size(each["free"]), str(each["containers"]))
            rows.append((name, each["driver"], _status(each), *sizes, each["path"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (" ".join(f"{word:<{width}}" for word, width in zip(row, widths)) for row in rows)  # noqa: B905
    return "".join(line.rstrip() + "\n" for line in lines)


def info_text(found: dict[str, Any]) -> str:
    """Return the lines of `pool info`."""
    lines = [f"{key}: {value}" for key, value in _described(found).items() if key != "Volumes"]
    lines.append(f"Containers: {found['containers']}")
    for uuid, name, driver, _ in found["volumes"]:
        lines.append(f"  {{{uuid}}} {driver or '?':<8} {name or '(not registered)'}")
    return "\n".join(lines) + "\n"


def _described(found: dict[str, Any], *, volumes: bool = False) -> dict[str, Any]:
    described: dict[str, Any] = {
        "Name": found["name"],
        "Default": "yes" if found["default"] else "no",
        "Driver": found["driver"],
        "Path": found["path"],
        "Status": found["problem"] or _status(found),
        "File system": found["fstype"],
        "Total": size(found["total"]),
        "Free": size(found["free"]),
        "Floor": size(found["floor"]),
        "Options": ",".join(f"{key}={value}" for key, value in found["options"].items()),
        "Capabilities": " ".join(found["capabilities"]),
    }
    if volumes:
        described["Containers"] = [
            {"ID": uuid, "Name": name, "Driver": driver}
            for uuid, name, driver, _ in found["volumes"]
        ]
    return described


def _status(found: dict[str, Any]) -> str:
    return "full" if found["free"] < found["floor"] else "ok"


def size(count: int) -> str:
    """Return bytes with one letter behind: 512M, 1.5G."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            text = f"{value:.1f}".removesuffix(".0")
            return f"{text}{unit}"
        value /= 1024
    return ""


_HANDLERS = {"add": _add, "list": _list, "info": _info, "set": _set, "delete": _delete}
