"""prlsrvctl net: virtual networks (tables, words and options of PrlSrv.cpp and CmdParam.cpp)."""

from __future__ import annotations

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

    Network = dict[str, Any]

ACTIONS = "list | info NETWORK | add NETWORK | set NETWORK | del NETWORK"

OPTIONS: tuple[OptionRow, ...] = (
    ("-j,--json", "", "as JSON (list, info)"),
    ("--no-slave", "", "without the interfaces of containers (list, info)"),
    ("-i,--ifname", "IF", "card of the node to which a bridged network is bound (also a bridge)"),
    ("-m,--mac", "MAC", "the same, by the card's hardware address"),
    ("-t,--type", "TYPE", "bridged, host-only, or shared (NAT with DHCP and DNS)"),
    ("-d,--description", "TEXT", "description"),
    ("--ip", "IP[/MASK]", "IPv4 address of the node in the network"),
    ("--dhcp-server", "on|off", "DHCP server for IPv4"),
    ("--dhcp-ip", "IP", "address of the DHCP server"),
    ("--ip-scope-start", "IP", "first address that is handed out"),
    ("--ip-scope-end", "IP", "last address that is handed out"),
    ("--ip6", "IP[/PREFIX]", "IPv6 address of the node in the network"),
    ("--dhcp6-server", "on|off", "DHCP server for IPv6"),
    ("--dhcp-ip6", "IP", "IPv6 address of the DHCP server"),
    ("--ip6-scope-start", "IP", "first IPv6 address that is handed out"),
    ("--ip6-scope-end", "IP", "last IPv6 address that is handed out"),
    ("--nat-tcp-add", "+RULE", "forward a TCP port: NAME,IP or container,PORT,PORT inside"),
    ("--nat-tcp-del", "+NAME", "remove a rule"),
    ("--nat-udp-add", "+RULE", "forward a UDP port: NAME,IP or container,PORT,PORT inside"),
    ("--nat-udp-del", "+NAME", "remove a rule"),
    ("--bridge", "NAME", "name of the bridge; ours: the original chooses it"),
    ("--vlan", "TAG", "a bridged network is this VLAN of its card; ours"),
    ("--vxlan", "ID", "the network spans nodes by VXLAN; ours"),
    ("--remote", "+IP", "another node of the VXLAN; ours"),
    ("--remote-del", "+IP", "no more a node of the VXLAN; ours"),
    ("--force", "on|off", "let the addresses of the card move to the bridge; ours"),
    ("-n,--name", "NAME", "refused: renaming is deprecated in the original, too"),
)

_NOT_SETTINGS = frozenset({"json", "no-slave", "name", "timeout", "login", "debug", "verbose"})
_SETTINGS = frozenset(
    row[0].split(",")[-1].removeprefix("--") for row in OPTIONS
) - _NOT_SETTINGS  # fmt: skip


def net(args: Arguments, server: Server) -> int:
    """Do what the word after `net` says."""
    action, *rest = args.words or [""]
    handler = _HANDLERS.get(action)
    if handler is None:
        raise UsageError("Unrecognized action of net", hint=f"prlsrvctl net {ACTIONS}")
    if args.has("name"):
        raise UsageError(
            "Virtual network's renaming is now deprecated. You may create new virtual network "
            "with specified name and reattach all virtual machines to it."
        )
    if action != "list" and not rest:
        raise UsageError("The Virtual Network name is not specified.")
    if len(rest) > (0 if action == "list" else 1):
        raise UsageError(f"An unknown option: {rest[-1]}")
    return handler(args, server, rest[0] if rest else "")


def _add(args: Arguments, server: Server, name: str) -> int:
    settings = _settings(args)
    _check(args)
    try:
        server.change("Network.Add", name=name, settings=settings)
    except VZError as error:
        raise failed(f"add Virtual Network {name}", error) from error
    return 0


def _set(args: Arguments, server: Server, name: str) -> int:
    settings = _settings(args)
    _check(args)
    try:
        server.change("Network.Set", name=name, settings=settings)
    except VZError as error:
        raise failed(f"update Virtual Network {name}", error) from error
    return 0


def _del(args: Arguments, server: Server, name: str) -> int:
    del args
    try:
        server.change("Network.Delete", name=name)
    except VZError as error:
        raise failed(f"delete Virtual Network {name}", error) from error
    return 0


def _settings(args: Arguments) -> list[dict[str, str]]:
    return [
        {"name": name, "value": value}
        for name, value in args.options
        if name in _SETTINGS and value is not None
    ]


def _check(args: Arguments) -> None:
    """Refuse what the original refuses before it asks anybody."""
    if args.has("ifname") and args.has("mac"):
        raise UsageError("Specify either the --ifname or --mac option, but not both options.")
    if args.value("type") == "host-only" and args.has("ifname") and not args.has("vxlan"):
        raise UsageError(
            "The --ifname option should be specified for bridged virtual networks only"
        )


def _list(args: Arguments, server: Server, name: str) -> int:
    del name
    slaves = not args.has("no-slave")
    networks = _ask(server)
    if args.has("json"):
        rows = [_row(each, slaves=slaves) for each in networks]
        sys.stdout.write(prl_json(rows) + "\n")
    else:
        sys.stdout.write(table(networks, slaves=slaves))
    return 0


def _info(args: Arguments, server: Server, name: str) -> int:
    (found,) = _ask(server, name)
    slaves = not args.has("no-slave")
    if args.has("json"):
        sys.stdout.write(prl_json(described(found, slaves=slaves)) + "\n")
    else:
        sys.stdout.write(info_text(found, slaves=slaves))
    return 0


def _ask(server: Server, *names: str) -> list[Network]:
    try:
        found: list[Network] = server.ask("Network.List", names=list(names) or None)["networks"]
    except VZError as error:
        raise failed("retrieve the list of Virtual Networks", error) from error
    return found


def _row(network: Network, *, slaves: bool) -> dict[str, str]:
    row = {
        "Network ID": network["name"],
        "Type": network["type"],
        "Bound To": network["bound"],
        "Bridge": network["bridge"],
    }
    return row | {"Slave interfaces": ",".join(network["slaves"])} if slaves else row


def table(networks: Sequence[Network], *, slaves: bool = True) -> str:
    """Return the table of `net list`, to the blank as the original prints it."""
    lines = [f"{'Network ID':<17} {'Type':<9} {'Bound To':<14} {'Bridge':<14} Slave interfaces"]
    for each in networks:
        row = _row(each, slaves=slaves)
        name = row.pop("Network ID")
        first = f"{name[:15]}~  " if len(name) > 16 else f"{name:<16}  "
        widths = (10, 15, 15, 15)
        lines.append(
            first + "".join(f"{text:<{width}}" for text, width in zip(row.values(), widths))  # noqa: B905
        )
    return "\n".join(lines) + "\n"


def described(network: Network, *, slaves: bool = True) -> dict[str, Any]:
    """Return what `net info` tells, with the keys and the nesting of its JSON."""
    made: dict[str, Any] = _row(network, slaves=slaves)
    if network["description"]:
        made["Description"] = network["description"]
    made |= _ours(network)
    four, six = network["ipv4"], network["ipv6"]
    if four["address"] or six["address"]:
        made["Adapter"] = {
            "IP address": four["address"].partition("/")[0],
            "Subnet mask": four["mask"],
            "IPv6 address": six["address"].partition("/")[0],
            "IPv6 subnet mask": six["mask"],
        }
    if four["dhcp"]:
        made["DHCPv4 server"] = {
            "Server address": four["server"],
            "IP scope start address": four["first"],
            "IP scope end address": four["last"],
        }
    if six["dhcp"]:
        made["DHCPv6 server"] = {
            "Server IPv6 address": six["server"],
            "IPv6 scope start address": six["first"],
            "IPv6 scope end address": six["last"],
        }
    if network["type"] == "shared":
        made["NAT server"] = _rules(network)
    return made


def _ours(network: Network) -> dict[str, Any]:
    """The lines that the original does not have, as far as they say something."""
    made: dict[str, Any] = {}
    if network["vlan"]:
        made["VLAN"] = network["vlan"]
    if network["vxlan"]:
        made["VXLAN"] = network["vxlan"]
        made["Remote nodes"] = ",".join(network["remotes"])
    if network["force"]:
        made["Force"] = "on"
    if network["problem"]:
        made["Problem"] = network["problem"]
    if network["blocked"]:
        made["Blocked"] = network["blocked"]
    return made


def _rules(network: Network) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for protocol in ("tcp", "udp"):
        rules = {
            each["name"]: {
                "redirect IP/VM id": each["target"],
                "in port": each["port"],
                "redirect port": each["target_port"],
            }
            for each in network["forwards"]
            if each["protocol"] == protocol
        }
        if rules:
            made[f"{protocol.upper()} rules"] = rules
    return made


def info_text(network: Network, *, slaves: bool = True) -> str:
    """Return the lines of `net info`."""
    lines: list[str] = []
    for key, value in described(network, slaves=slaves).items():
        if key == "NAT server":
            lines += [" ", "NAT server:", *_rule_lines(value)]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {name}: {text}" for name, text in value.items())]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines) + "\n"


def _rule_lines(blocks: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for title, rules in blocks.items():
        lines.append(f"{title}:")
        for name, rule in rules.items():
            words = " ".join(f"{key}={value}" for key, value in rule.items())
            lines.append(f"    {name} {words}")
    return lines


_HANDLERS = {
    "list": _list,
    "info": _info,
    "add": _add,
    "new": _add,
    "set": _set,
    "del": _del,
}
