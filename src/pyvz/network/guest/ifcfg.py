"""ifcfg files of Red Hat's network scripts; NetworkManager of that age reads them, too."""

from __future__ import annotations

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import (
    GuestInterface,
    GuestNetwork,
    drop,
    is_ours,
    is_program,
    put,
    read,
)

RANK = 20
FOLDER = "etc/sysconfig/network-scripts"
_KINDS = ("ifcfg-", "route-", "route6-")


def detect(guest: GuestRoot) -> bool:
    """Whether the network scripts are there (they are optional since RHEL 8)."""
    return is_program(guest, f"{FOLDER}/ifup", f"{FOLDER}/ifup-eth")


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write ifcfg-, route- and route6- files for interfaces that have no file of another hand."""
    files: dict[str, str] = {}
    for interface in network.interfaces:
        former = f"{FOLDER}/ifcfg-{interface.name}"
        if not guest.exists(former) or is_ours(read(guest, former)):
            files |= _files(interface)
    for name in guest.names(FOLDER):
        if name.startswith(_KINDS) and name not in files:
            drop(guest, f"{FOLDER}/{name}")
    for name, text in files.items():
        put(guest, f"{FOLDER}/{name}", text)


def _files(interface: GuestInterface) -> dict[str, str]:
    name = interface.name
    files = {f"ifcfg-{name}": _ifcfg(interface)}
    for route in interface.routes():
        way = f"via {route.gateway} dev {name}" if route.gateway else f"dev {name}"
        scope = " scope link" if route.version == 4 and not route.gateway else ""
        kind = "route-" if route.version == 4 else "route6-"
        onlink = " onlink" if route.onlink else ""
        files[f"{kind}{name}"] = f"default {way}{scope}{onlink}\n"
    return files


def _ifcfg(interface: GuestInterface) -> str:
    # ARPCHECK: the node answers for addresses of the world, which looks like a duplicate.
    lines = [f"DEVICE={interface.name}", "TYPE=Ethernet", "ONBOOT=yes", "ARPCHECK=no"]
    lines.append(f"BOOTPROTO={'dhcp' if interface.dhcp else 'none'}")
    for rank, address in enumerate(interface.of(4)):
        lines += [f"IPADDR{rank or ''}={address.ip}", f"PREFIX{rank or ''}={address.prefix}"]
    first, *more = [*map(str, interface.of(6)), ""]
    if first or interface.dhcp6:
        lines += ["IPV6INIT=yes", f"IPV6_AUTOCONF={'yes' if interface.dhcp6 else 'no'}"]
        lines += [f"IPV6ADDR={first}"] if first else []
        lines += [f'IPV6ADDR_SECONDARIES="{" ".join(more).strip()}"'] if more[:-1] else []
        lines += ["DHCPV6C=yes"] if interface.dhcp6 else []
    return "\n".join(lines) + "\n"
