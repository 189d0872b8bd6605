"""ifupdown of Debian and of busybox: interfaces(5).

The addresses are there already when ifup runs, and `static` would fail with "File exists" in some
versions; so the stanzas are `manual` and say `replace`.
"""

from __future__ import annotations

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import (
    GuestInterface,
    GuestNetwork,
    drop,
    is_ours,
    is_program,
    mentions,
    put,
    read,
)

RANK = 50
MAIN = "etc/network/interfaces"
FOLDER = "etc/network/interfaces.d"
FILE = f"{FOLDER}/pyvz"
BEGIN = "# pyvz: begin (changes up to the end are lost)"
END = "# pyvz: end"
_SOURCED = r"^\s*(source|source-directory|source-dir)\s+(/etc/network/|)interfaces\.d(/\*?)?\s*%s$"
_OWNED = r"^\s*iface\s+%s(\s|$)"


def detect(guest: GuestRoot) -> bool:
    """Whether it has interfaces(5) and a program that reads it."""
    programs = ("sbin/ifup", "usr/sbin/ifup", "bin/busybox")
    return guest.is_file(MAIN) and is_program(guest, *programs)


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write interfaces.d/pyvz, or a marked part of the main file where nothing includes it."""
    main = read(guest, MAIN)
    others = [_without_block(main)]
    for name in guest.names(FOLDER):
        text = read(guest, f"{FOLDER}/{name}")
        others += [] if is_ours(text) else [text]
    free = [x for x in network.interfaces if not any(mentions(o, _OWNED, x.name) for o in others)]
    text = "".join(_stanzas(interface) for interface in free)
    sourced = mentions(_without_block(main), _SOURCED, "")
    if text and sourced:
        put(guest, FILE, text)
    else:
        drop(guest, FILE)
    _set_block(guest, main, "" if sourced else text)


def _set_block(guest: GuestRoot, main: str, text: str) -> None:
    wanted = _without_block(main)
    if text:
        wanted = f"{wanted.rstrip()}\n\n{BEGIN}\n{text.strip()}\n{END}\n".lstrip()
    if wanted != main:
        guest.write(MAIN, wanted)


def _without_block(main: str) -> str:
    head, begin, rest = main.partition(BEGIN)
    if not begin:
        return main
    _, end, tail = rest.partition(END)
    return head.rstrip() + "\n" + (tail.lstrip("\n") if end else "")


def _stanzas(interface: GuestInterface) -> str:
    lines = [f"\nauto {interface.name}"]
    for version, dhcp in ((4, interface.dhcp), (6, interface.dhcp6)):
        family = "inet" if version == 4 else "inet6"
        if dhcp:
            lines.append(f"iface {interface.name} {family} dhcp")
        elif interface.of(version) or version == 4:
            lines += [f"iface {interface.name} {family} manual", *_commands(interface, version)]
    return "\n".join(lines) + "\n"


def _commands(interface: GuestInterface, version: int) -> list[str]:
    ip = f"ip -{version}"
    nodad = " nodad" if version == 6 else ""
    up = [f"{ip} address replace {x} dev $IFACE{nodad}" for x in interface.of(version)]
    for route in interface.routes():
        if route.version == version:
            way = f"via {route.gateway} dev $IFACE" if route.gateway else "dev $IFACE scope link"
            # IPv6 knows no scope of routes (net/ipv6/route.c).
            way = way.removesuffix(" scope link") if version == 6 else way
            up.append(f"{ip} route replace default {way}{' onlink' if route.onlink else ''}")
    lines = ["    pre-up ip link set dev $IFACE up"] + [f"    up {command}" for command in up]
    return [*lines, f"    down {ip} address flush dev $IFACE scope global"]
