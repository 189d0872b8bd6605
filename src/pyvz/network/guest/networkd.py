"""systemd-networkd: systemd.network(5)."""

from __future__ import annotations

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import (
    GuestInterface,
    GuestNetwork,
    GuestRoute,
    drop_others,
    enabled,
    is_ours,
    is_program,
    mentions,
    put,
    read,
)

RANK = 40
FOLDER = "etc/systemd/network"
PROGRAMS = ("usr/lib/systemd/systemd-networkd", "lib/systemd/systemd-networkd")
# The first file in the order of names that matches an interface counts.
PREFIX = "05-pyvz-"
_OWNED = r"^\s*Name\s*=\s*(\S+\s+)*%s(\s|$)"


def detect(guest: GuestRoot) -> bool:
    """Whether systemd-networkd is there and starts at boot."""
    return is_program(guest, *PROGRAMS) and enabled(guest, "systemd-networkd.service")


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write one file for each interface that no other file names."""
    others = [
        text
        for name in guest.names(FOLDER)
        if name.endswith(".network") and not is_ours(text := read(guest, f"{FOLDER}/{name}"))
    ]
    files = {
        f"{PREFIX}{interface.name}.network": text_of(interface)
        for interface in network.interfaces
        if not any(mentions(other, _OWNED, interface.name) for other in others)
    }
    drop_others(guest, FOLDER, files)
    for name, text in files.items():
        put(guest, f"{FOLDER}/{name}", text)


def text_of(interface: GuestInterface) -> str:
    """Return the .network file of one interface."""
    dhcp = {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6"}
    lines = ["[Match]", f"Name={interface.name}", "", "[Network]"]
    # Addresses that are there already when networkd starts stay (systemd.network(5)).
    lines += [f"DHCP={dhcp.get((interface.dhcp, interface.dhcp6), 'no')}"]
    lines += ["KeepConfiguration=static", f"IPv6AcceptRA={_advertisements(interface)}"]
    lines += [f"Address={address}" for address in interface.of(4)]
    for address in interface.of(6):
        lines += ["", "[Address]", f"Address={address}", "DuplicateAddressDetection=none"]
    for route in interface.routes():
        lines += _route(route)
    return "\n".join(lines) + "\n"


def _advertisements(interface: GuestInterface) -> str:
    """DHCPv6 and a bridged interface without IPv6 of its own listen to routers."""
    if interface.dhcp6:
        return "yes"
    return "no" if interface.kind == "venet" or interface.of(6) else "yes"


def _route(route: GuestRoute) -> list[str]:
    lines = ["", "[Route]", f"Destination={route.destination}"]
    if not route.gateway:
        return lines + (["Scope=link"] if route.version == 4 else [])
    return [*lines, f"Gateway={route.gateway}", *(["GatewayOnLink=yes"] if route.onlink else [])]
