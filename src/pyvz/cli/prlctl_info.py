"""prlctl list -i: what the server tells about an environment, as lines or as JSON.

`Environment.Info` answers an object whose keys, nesting and order are those of
`prlctl list -i -j`; the plain form is rendered from it, so both always agree:

- a top-level text or number is a line `Key: value`; ID gets its braces, Uptime (seconds as text) is
  printed as a duration with its beginning;
- a top-level object is one line `Key: name=value name=value`, except "Hardware" (a block with one
  line per device), and those with "enabled" of a boolean ("Offline management: (-)", a block);
- inside a line a true flag is its name alone, a false one is not printed, "enabled" is (+) or (-),
  some values stand without their name and some in quotes (PrlDev.cpp).
"""

from __future__ import annotations

import sys
import time

from pyvz.cli.output import prl_json
from pyvz.cli.program import failed
from pyvz.cli.subject import unknown
from pyvz.errors import EnvironmentNotFound, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvz.cli.arguments import Arguments
    from pyvz.cli.server import Server

    Info = dict[str, Any]

_NAMELESS = frozenset({"size", "port", "value", "nodes", "runtime"})
_QUOTED = frozenset(
    (
        *("image", "real", "ips", "dhcp", "dhcp6", "gw", "gw6", "dev", "ifname", "network"),
        *("keyid", "device", "output", "socket", "socket-tcp", "socket-udp", "type"),
    )
)


def list_info(args: Arguments, server: Server, kind: str | None) -> int:
    """Print everything about the named environments, or about all of them."""
    infos = _infos(args, server, kind)
    if args.has("json"):
        sys.stdout.write(prl_json(infos) + "\n")
        return 0
    if not args.has("no-header"):
        sys.stdout.write("INFO\n")
    for info in infos:
        sys.stdout.write(plain(info) + "\n")
    return 0


def _infos(args: Arguments, server: Server, kind: str | None) -> list[Info]:
    full = args.has("full")
    if args.words:
        refs = args.words
    else:
        reply = server.ask(
            "Environment.List", refs=[], fields=["uuid", "name", "template"], kind=kind
        )
        templates = args.has("template")
        rows = [row for row in reply["rows"] if bool(row.get("template")) == templates]
        refs = [str(row["uuid"]) for row in sorted(rows, key=lambda row: str(row["name"]))]
    infos: list[Info] = []
    for ref in refs:
        try:
            infos.append(_original(server.ask("Environment.Info", ref=ref, full=full)["info"]))
        except EnvironmentNotFound as error:
            if args.words:
                raise unknown(ref) from error
            # It was deleted between our two questions: it is not in the list any more.
        except VZError as error:
            raise failed("get VM config", error) from error
    return infos


def _original(info: Info) -> Info:
    """Return INFO with the switches as the one text that scripts know: "nfs:on bridge:off"."""
    features = info.get("Features")
    if isinstance(features, dict):
        info["Features"] = " ".join(f"{name}:{_word(on)}" for name, on in features.items())
    return info


def plain(info: Info) -> str:
    """Return the lines of one environment."""
    lines: list[str] = []
    for key, value in info.items():
        lines += plain_value(key, value)
    return "\n".join(lines) + "\n"


def plain_value(key: str, value: Any) -> list[str]:
    """Return the lines of one top-level key."""
    if isinstance(value, dict):
        return _object(key, value)
    return [f"{key}: {_top(key, value)}"]


def _top(key: str, value: Any) -> str:
    if key == "ID":
        return "{" + str(value).strip("{}") + "}"
    if key == "Uptime":
        return uptime(int(value))
    return _word(value)


def uptime(seconds: int, now: float | None = None) -> str:
    """Return SECONDS as "[N days ]HH:MM:SS (since DATE)"."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    begun = time.localtime((time.time() if now is None else now) - seconds)
    text = f"{days} days " if days else ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", begun)
    return f"{text}{hour:02}:{minute:02}:{second:02} (since {since})"


def _object(key: str, value: Info) -> list[str]:
    if key == "Hardware":
        return ["Hardware:", *(f"  {name}{_inline(item)}" for name, item in value.items())]
    if isinstance(value.get("enabled"), bool):
        sign = "(+)" if value["enabled"] else "(-)"
        rest = (f"  {name}: {_word(item)}" for name, item in value.items() if name != "enabled")
        return [f"{key}: {sign}", *rest]
    return [f"{key}:{_inline(value, _NAMELESS - {'port'})}"]


def _inline(value: Any, nameless: frozenset[str] = _NAMELESS) -> str:
    if not isinstance(value, dict):
        return " " + _word(value)
    text = ""
    for name, item in value.items():
        if name == "enabled" and isinstance(item, bool):
            text += " (+)" if item else " (-)"
        elif isinstance(item, bool):
            text += f" {name}" if item else ""
        elif name in nameless:
            text += f" {item}"
        elif name in _QUOTED:
            text += f" {name}='{item}'"
        else:
            text += f" {name}={item}"
    return text


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
