"""netplan of Ubuntu: it makes files for networkd or NetworkManager at each boot.

What it takes for a route without gateway: scope link and a `to` (netplan, src/parse.c); `default`
as a destination is newer than the guests we have to serve.
"""

from __future__ import annotations

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import (
    GuestInterface,
    GuestNetwork,
    GuestRoute,
    drop,
    is_ours,
    is_program,
    mentions,
    put,
    read,
)

RANK = 10
FOLDER = "etc/netplan"
FILE = f"{FOLDER}/60-pyvz.yaml"
PROGRAMS = ("usr/sbin/netplan", "sbin/netplan")
_OWNED = r"^\s+[\"']?%s[\"']?\s*:\s*$"


def detect(guest: GuestRoot) -> bool:
    """Whether netplan is there."""
    return guest.is_dir(FOLDER) and is_program(guest, *PROGRAMS)


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write one file with every interface that no other file of netplan speaks of."""
    others = [
        text
        for name in guest.names(FOLDER)
        if name.endswith(".yaml") and not is_ours(text := read(guest, f"{FOLDER}/{name}"))
    ]
    free = [x for x in network.interfaces if not any(mentions(o, _OWNED, x.name) for o in others)]
    if not free:
        drop(guest, FILE)
        return
    head = "network:\n  version: 2\n  ethernets:\n"
    put(guest, FILE, head + "".join(map(_interface, free)), mode=0o600)


def _interface(interface: GuestInterface) -> str:
    # critical: addresses that are there already stay (KeepConfiguration of networkd).
    lines = [f'    "{interface.name}":', "      critical: true"]
    lines += [f"      dhcp4: {_word(interface.dhcp)}", f"      dhcp6: {_word(interface.dhcp6)}"]
    if interface.kind == "venet" or interface.of(6):
        lines.append("      accept-ra: " + _word(interface.dhcp6))
    if interface.addresses:
        lines += ["      addresses:", *(f'        - "{x}"' for x in interface.addresses)]
    if routes := interface.routes():
        lines += ["      routes:", *(line for route in routes for line in _route(route))]
    return "\n".join(lines) + "\n"


def _route(route: GuestRoute) -> list[str]:
    lines = [f'        - to: "{route.destination}"']
    if not route.gateway:
        return [*lines, "          scope: link"]
    onlink = ["          on-link: true"] if route.onlink else []
    return [*lines, f'          via: "{route.gateway}"', *onlink]


def _word(flag: bool) -> str:  # noqa: FBT001
    return "true" if flag else "false"
