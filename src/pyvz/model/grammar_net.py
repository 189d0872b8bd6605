"""NETIF: the virtual interfaces of a container (config.md section 3.5).

Interfaces are joined by ``;``, each is ``k=v`` pairs joined by ``,``.  Addresses inside ``ip=`` are
joined by ``:`` (dotted masks); inside ``ip6=`` by ``,`` with prefix lengths, therefore ``ip6=``
comes last.  Filters are written only when off.  Pairs that we do not know are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvz.errors import BadValue
from pyvz.model.grammar_list import Address, Addresses, parse_address

_IFNAME = re.compile(r"[^\s/:,;=\"'\\\x00-\x1f]{1,15}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_BARE_MAC = re.compile(r"[0-9a-fA-F]{12}")
_PLAIN = re.compile(r"[^\s,;=\"'\\\x00-\x1f]{1,255}")
_ADDRESSES = Addresses()


class NetIf(NamedTuple):
    """One interface; texts are "" where nothing is said.

    configure: "all" or "none" ("" counts as all).  dhcp, dhcp6: addresses come from DHCP.
    connected: the cable is plugged in (a pair of ours; written only when it is not).
    other: pairs that we do not know, kept as they are.
    """

    ifname: str
    mac: str = ""
    host_mac: str = ""
    host_ifname: str = ""
    type: str = ""  # routed or bridge
    network: str = ""
    vport: str = ""  # ovs
    gw: str = ""
    gw6: str = ""
    mac_filter: bool = True
    ip_filter: bool = True
    ifaceid: str = ""
    configure: str = ""
    dhcp: bool = False
    ip: tuple[Address, ...] = ()
    dhcp6: bool = False
    ip6: tuple[Address, ...] = ()
    connected: bool = True
    other: tuple[tuple[str, str], ...] = ()


_TEXT_KEYS = ("ifname", "mac", "host_mac", "host_ifname", "type", "network", "vport")
_MORE_KEYS = ("gw", "gw6")


def check_ifname(name: str) -> str:
    """Return NAME when the kernel takes it for an interface (dev_valid_name)."""
    if not _IFNAME.fullmatch(name) or name in {".", ".."}:
        raise BadValue(f"'{name}' is not the name of a network interface (1 to 15 characters)")
    return name


def check_mac(text: str) -> str:
    """Return the MAC address in the form 00:18:51:aa:bb:cc; BadValue for a multicast one."""
    if _BARE_MAC.fullmatch(text):
        text = ":".join(text[i : i + 2] for i in range(0, 12, 2))
    if not _MAC.fullmatch(text):
        raise BadValue(f"'{text}' is not a MAC address (like 00:18:51:aa:bb:cc)")
    if int(text[:2], 16) & 1:
        raise BadValue(f"'{text}' is a multicast address, no interface can have it")
    return text.lower()


def _gateway(text: str) -> str:
    return "" if text in {"", "removed"} else parse_address(text).ip


def _word(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise BadValue(f"'{text}' cannot stand in NETIF")
    return text


def _type(text: str) -> str:
    if text not in {"routed", "bridge", "bridged"}:
        raise BadValue(f"'{text}' is not one of routed, bridged")
    return "bridge" if text == "bridged" else text


def _choice(*words: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in words:
            raise BadValue(f"'{text}' is not one of {', '.join(words)}")
        return text

    return check


_CHECKS: dict[str, Callable[[str], str]] = {
    "ifname": check_ifname,
    "mac": check_mac,
    "host_mac": check_mac,
    "host_ifname": check_ifname,
    "type": _type,
    "network": _word,
    "vport": _choice("ovs"),
    "gw": _gateway,
    "gw6": _gateway,
    "ifaceid": _word,
    "configure": _choice("all", "none"),
}
_FLAGS = frozenset({"dhcp", "dhcp6", "mac_filter", "ip_filter", "connected"})
_OFF = ("mac_filter", "ip_filter", "connected")  # written only when off


class NetIfs:
    """NETIF."""

    def parse(self, text: str) -> tuple[NetIf, ...]:
        """Return the interfaces; BadValue names the interface and the pair."""
        found = tuple(_parse_one(part) for part in text.split(";") if part.strip())
        names = [netif.ifname for netif in found]
        if len(set(names)) < len(names):
            raise BadValue(f"an interface is there twice: {', '.join(sorted(names))}")
        return found

    def format(self, value: tuple[NetIf, ...]) -> str:
        """Return the stored text."""
        return ";".join(map(_format_one, value))

    def add(self, old: tuple[NetIf, ...] | None, text: str) -> tuple[NetIf, ...]:
        """Return OLD with the interface ``IF[,mac[,host_ifname[,host_mac]]]`` of vzctl."""
        name, mac, host_name, host_mac, *rest = [*text.strip().split(","), "", "", ""]
        if any(rest):
            raise BadValue(f"'{text}' is not of the form IFNAME[,MAC[,HOST_IFNAME[,HOST_MAC]]]")
        if any(netif.ifname == name for netif in old or ()):
            raise BadValue(f"there is an interface {name} already")
        new = NetIf(
            check_ifname(name),
            mac=check_mac(mac) if mac else "",
            host_ifname=check_ifname(host_name) if host_name else "",
            host_mac=check_mac(host_mac) if host_mac else "",
        )
        return (*(old or ()), new)

    def remove(self, old: tuple[NetIf, ...] | None, text: str) -> tuple[NetIf, ...]:
        """Return OLD without the interface TEXT (``all`` for all of them)."""
        name = text.strip()
        if name == "all":
            return ()
        if not any(netif.ifname == name for netif in old or ()):
            raise BadValue(f"there is no interface {name}")
        return tuple(netif for netif in old or () if netif.ifname != name)


def change_netif(netif: NetIf, key: str, text: str) -> NetIf:
    """Return NETIF with what the option for KEY says (--mac, --gw, --ipadd, ...)."""
    text = text.strip()
    if key == "ipadd":
        both = _ADDRESSES.add((*netif.ip, *netif.ip6), text)
        return netif._replace(
            ip=tuple(x for x in both if ":" not in x.ip),
            ip6=tuple(x for x in both if ":" in x.ip),
        )
    if key == "ipdel":
        left = _ADDRESSES.remove((*netif.ip, *netif.ip6), text)
        return netif._replace(
            ip=tuple(x for x in netif.ip if x in left),
            ip6=tuple(x for x in netif.ip6 if x in left),
        )
    changed: dict[str, Any] = {}
    if key in _FLAGS:
        changed[key] = _yes(text)
    else:
        changed[key] = _CHECKS[key](text) if text else ""
    return netif._replace(**changed)


def _yes(text: str) -> bool:
    if text.lower() in {"yes", "on"}:
        return True
    if text.lower() in {"no", "off"}:
        return False
    raise BadValue(f"'{text}' is neither yes (on) nor no (off)")


def _parse_one(text: str) -> NetIf:
    head, found6, tail = _cut_ip6(text.strip())
    known: dict[str, Any] = {}
    other: list[tuple[str, str]] = []
    for pair in filter(None, head.split(",")):
        key, equals, value = pair.strip().partition("=")
        if not equals:
            raise BadValue(f"'{pair}' in '{text}' is not of the form KEY=VALUE")
        if key in _FLAGS:
            known[key] = _yes(value)
        elif key == "ip":
            known["ip"] = tuple(parse_address(word) for word in value.split(":") if word)
        elif key in _CHECKS:
            known[key] = _CHECKS[key](value) if value else ""
        else:
            other.append((_word(key), _word(value) if value else ""))
    if found6:
        known["ip6"] = tuple(parse_address(word) for word in tail.split(",") if word)
    if not known.get("ifname"):
        raise BadValue(f"'{text}' has no ifname")
    return NetIf(**known, other=tuple(other))


def _cut_ip6(text: str) -> tuple[str, str, str]:
    """Split off ``ip6=``, which is last and holds commas."""
    if text.startswith("ip6="):
        return "", "ip6=", text.removeprefix("ip6=")
    return text.partition(",ip6=")


def _format_one(netif: NetIf) -> str:
    pairs = [(key, getattr(netif, key)) for key in (*_TEXT_KEYS, *_MORE_KEYS)]
    pairs += [(key, "" if getattr(netif, key) else "off") for key in _OFF]
    pairs += [("ifaceid", netif.ifaceid), ("configure", netif.configure)]
    pairs += [("dhcp", "yes" if netif.dhcp else ""), ("ip", ":".join(map(str, netif.ip)))]
    pairs += [("dhcp6", "yes" if netif.dhcp6 else "")]
    pairs = [(key, value) for key, value in pairs if value] + list(netif.other)
    if netif.ip6:
        pairs.append(("ip6", ",".join(map(str, netif.ip6))))
    return ",".join(f"{key}={value}" for key, value in pairs)
