"""prlsrvctl privnet: IP private networks (words and table of PrlSrv.cpp)."""

from __future__ import annotations

import sys

from pyvz.cli.arguments import on_off
from pyvz.cli.output import prl_json
from pyvz.cli.program import failed
from pyvz.errors import UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

ACTIONS = "list | add NETWORK | set NETWORK | del NETWORK"

OPTIONS: tuple[OptionRow, ...] = (
    ("-j,--json", "", "as JSON (list)"),
    ("-a,--ipadd", "+NET", "add a net, or * (weak: may speak with all but regular networks)"),
    ("-d,--ipdel", "+NET", "take a net, or *, away"),
    ("--global", "yes|no", "the nets are ranges that belong to private networks in any case"),
)


def privnet(args: Arguments, server: Server) -> int:
    """Do what the word after `privnet` says."""
    action, *rest = args.words or [""]
    handler = _HANDLERS.get(action)
    if handler is None:
        raise UsageError("Unrecognized action of privnet", hint=f"prlsrvctl privnet {ACTIONS}")
    if action != "list" and not rest:
        raise UsageError("The IP private network name is not specified.")
    if len(rest) > (0 if action == "list" else 1):
        raise UsageError(f"An unknown option: {rest[-1]}")
    return handler(args, server, rest[0] if rest else "")


def _add(args: Arguments, server: Server, name: str) -> int:
    try:
        server.change(
            "Network.AddPrivate",
            name=name,
            nets=args.values("ipadd"),
            is_global=_global(args) or False,
        )
    except VZError as error:
        raise failed(f"add the IP private network {name}", error) from error
    return 0


def _set(args: Arguments, server: Server, name: str) -> int:
    if not any(map(args.has, ("ipadd", "ipdel", "global"))):
        raise UsageError("Specify either the --ipadd or --ipdel option.")
    try:
        server.change(
            "Network.SetPrivate",
            name=name,
            add=args.values("ipadd"),
            remove=args.values("ipdel"),
            is_global=_global(args),
        )
    except VZError as error:
        raise failed(f"update the IP private network {name}", error) from error
    return 0


def _del(args: Arguments, server: Server, name: str) -> int:
    del args
    try:
        server.change("Network.DeletePrivate", name=name)
    except VZError as error:
        raise failed(f"delete the IP private network {name}", error) from error
    return 0


def _global(args: Arguments) -> bool | None:
    text = args.value("global")
    return None if text is None else on_off(text, "--global")


def _list(args: Arguments, server: Server, name: str) -> int:
    del name
    try:
        networks = server.ask("Network.ListPrivate")["networks"]
    except VZError as error:
        raise failed("retrieve the list of IP private networks", error) from error
    if args.has("json"):
        rows = [
            {
                "Name": each["name"],
                "Is global": each["is_global"],
                "Netmasks": " ".join(each["nets"]),
            }
            for each in networks
        ]
        sys.stdout.write(prl_json(rows) + "\n")
    else:
        sys.stdout.write(table(networks))
    return 0


def table(networks: Sequence[dict[str, Any]]) -> str:
    """Return the table of `privnet list`."""
    lines = ["Name              G Netmasks"]
    for each in networks:
        name = each["name"]
        first = f"{name[:15]}~  " if len(name) > 16 else f"{name:<16}  "
        lines.append(f"{first}{'x' if each['is_global'] else ' '} {' '.join(each['nets'])}")
    return "\n".join(lines) + "\n"


_HANDLERS = {"list": _list, "add": _add, "set": _set, "del": _del}
