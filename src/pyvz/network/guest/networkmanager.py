"""NetworkManager: profiles as keyfiles (nm-settings-keyfile(5))."""

from __future__ import annotations

import uuid

from pyvz.linux.guestroot import GuestRoot
from pyvz.network.guest.base import (
    GuestInterface,
    GuestNetwork,
    drop_others,
    enabled,
    is_ours,
    is_program,
    mentions,
    put,
    read,
)

RANK = 30
FOLDER = "etc/NetworkManager/system-connections"
PROGRAMS = ("usr/sbin/NetworkManager", "usr/bin/NetworkManager")
_OWNED = r"^\s*interface-name\s*=\s*%s\s*$"
_NAMESPACE = uuid.UUID("c1d9b7a2-7a53-4a66-9c0a-2f0b2c8f5a10")


def detect(guest: GuestRoot) -> bool:
    """Whether NetworkManager is there and starts at boot."""
    return is_program(guest, *PROGRAMS) and enabled(guest, "NetworkManager.service")


def write(guest: GuestRoot, network: GuestNetwork) -> None:
    """Write one profile for each interface that no other profile names."""
    others = [
        text for name in guest.names(FOLDER) if not is_ours(text := read(guest, f"{FOLDER}/{name}"))
    ]
    files = {
        f"pyvz-{interface.name}.nmconnection": _profile(interface, network)
        for interface in network.interfaces
        if not any(mentions(other, _OWNED, interface.name) for other in others)
    }
    drop_others(guest, FOLDER, files)
    for name, text in files.items():
        # NetworkManager refuses profiles that others than root can read.
        put(guest, f"{FOLDER}/{name}", text, mode=0o600)


def _profile(interface: GuestInterface, network: GuestNetwork) -> str:
    lines = ["[connection]", f"id=pyvz {interface.name}"]
    lines += [f"uuid={uuid.uuid5(_NAMESPACE, interface.name)}", "type=ethernet"]
    lines += [f"interface-name={interface.name}", "autoconnect=true"]
    # Above profiles that NetworkManager makes for a device nobody has described.
    lines += ["autoconnect-priority=10", ""]
    for version in (4, 6):
        lines += [f"[ipv{version}]", *_family(interface, network, version), ""]
    return "\n".join(lines)


def _family(interface: GuestInterface, network: GuestNetwork, version: int) -> list[str]:
    lines = _method(interface, network, version)
    # The node lets the link-local address through that is made of the MAC, and no other.
    return [*lines, "addr-gen-mode=eui64"] if version == 6 else lines


def _method(interface: GuestInterface, network: GuestNetwork, version: int) -> list[str]:
    addresses = interface.of(version)
    dhcp = interface.dhcp if version == 4 else interface.dhcp6
    if dhcp:
        return ["method=auto", *_resolver(network, version)]
    if not addresses:
        nothing = "disabled" if version == 4 or interface.kind == "venet" else "auto"
        return [f"method={nothing}"]
    lines = ["method=manual", "may-fail=false"]
    lines += [f"address{rank}={address}" for rank, address in enumerate(addresses, 1)]
    for route in interface.routes():
        if route.version == version:
            lines.append(f"route1={route.destination}{',' if route.gateway else ''}{route.gateway}")
            lines += ["route1_options=onlink=true"] if route.onlink else []
    return lines + _resolver(network, version)


def _resolver(network: GuestNetwork, version: int) -> list[str]:
    """NetworkManager writes resolv.conf itself, so the profile has to say the same."""
    servers = [x for x in network.nameservers if (":" in x) == (version == 6)]
    lines = [f"dns={''.join(f'{server};' for server in servers)}"] if servers else []
    if network.searchdomains:
        lines.append(f"dns-search={''.join(f'{domain};' for domain in network.searchdomains)}")
    return lines
