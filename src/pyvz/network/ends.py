"""The two ends of one interface: what the node's end and the inner end are given.

Doers of one step each, called by links.py with what is there already (a Link, an index), so that
a start asks the kernel as little as possible.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from pyvz.errors import NetworkError
from pyvz.linux.netlink import SCOPE_LINK, Link, Netlink, Route, set_sysctl
from pyvz.network.base import Interface, NetworkPlan, Proxy, family

FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}
_NODAD = 0x02  # IFA_F_NODAD


def settings(interface: Interface) -> dict[str, str]:
    """Return what makes the node's end a plain port: no address, nothing learned from inside."""
    name = interface.host_name
    made = {
        f"net/ipv6/conf/{name}/addr_gen_mode": "1",  # no link-local address
        f"net/ipv6/conf/{name}/accept_ra": "0",
        f"net/ipv6/conf/{name}/accept_redirects": "0",
        f"net/ipv4/conf/{name}/accept_redirects": "0",
    }
    if interface.kind != "routed":
        # Without IPv6 it has no use for the rest of it.
        return {
            f"net/ipv6/conf/{name}/disable_ipv6": "1",
            f"net/ipv4/conf/{name}/accept_redirects": "0",
        }
    made[f"net/ipv4/conf/{name}/forwarding"] = "1"
    # Since 6.17; before, IPv6 is forwarded only where the whole node does (all/forwarding).
    made[f"net/ipv6/conf/{name}/force_forwarding"] = "1"
    if interface.tap:
        # A virtual machine asks for its gateway, whatever that is called: the node answers.
        made[f"net/ipv4/conf/{name}/proxy_arp"] = "1"
        made[f"net/ipv6/conf/{name}/proxy_ndp"] = "1"
        del made[f"net/ipv6/conf/{name}/addr_gen_mode"]
    return made


def prepare(interface: Interface) -> None:
    """Write the settings."""
    for key, value in settings(interface).items():
        set_sysctl(key, value, optional=True)


def plug(interface: Interface, link: Link, bridge: Link | None, outside: Netlink) -> None:
    """Let the node's end lead somewhere: up, into its bridge, and with routes to it."""
    if not interface.connected:
        outside.set_link(link.index, state="down")
        return
    changed: dict[str, int] = {}
    if (bridge.index if bridge else 0) != link.master:
        changed["master"] = bridge.index if bridge else 0
    if bridge is not None and bridge.mtu != link.mtu:
        changed["mtu"] = bridge.mtu
    outside.set_link(link.index, state="up", **changed)
    route_to(interface, interface.routes, link.index, outside)


def unplug(interface: Interface, link: Link, outside: Netlink) -> None:
    """Let the node's end lead nowhere, and stay up: the container sees no change."""
    for address in interface.routes:
        outside.delete_route(host_route(interface, address, link.index))
    if link.master:
        outside.set_link(link.index, master=0)


def furnish(
    interface: Interface, index: int, inside: Netlink, *, mtu: int = 0, settled: bool = False
) -> None:
    """Addresses and routes inside; the link is up there also while its cable is unplugged.

    settled: IPv6 addresses may be used at once, without looking whether somebody else has them.
    """
    changed: dict[str, int] = {"mtu": mtu} if mtu else {}
    if interface.kind == "routed":
        changed["arp"] = False
    inside.set_link(index, state="up", **changed)
    for address in interface.addresses:
        more = {"flags": _NODAD} if settled and family(address) == "6" else {}
        inside.add_address(index, address, **more)
    if interface.connected:
        for route in defaults(interface, index):
            inside.replace_route(route)


def alter(before: Interface, after: Interface, index: int, inside: Netlink) -> None:
    """Bring the inner end from one plan to the other; what stays is not looked at."""
    had, has = dict.fromkeys(before.addresses), dict.fromkeys(after.addresses)
    for address in had:
        if address not in has:
            inside.delete_address(index, address)
    for address in has:
        if address not in had:
            inside.add_address(index, address)
    if (before.default, before.gateways) != (after.default, after.gateways):
        for route in defaults(before, index):
            inside.delete_route(route)
    # Also when they are the same: with the last address of a family its routes are gone.
    for route in defaults(after, index):
        inside.replace_route(route)


def scrape(before: Interface, after: Interface, index: int, inside: Netlink) -> None:
    """Take away inside what BEFORE may have put there and AFTER has not; the rest is in place."""
    for address in set(before.addresses) - set(after.addresses):
        inside.delete_address(index, address)
    for version, family_ in FAMILIES.items():
        if version not in after.default:
            inside.delete_route(Route("default", index, family_))
    for route in defaults(after, index) if after.connected else ():
        inside.replace_route(route)


def defaults(interface: Interface, index: int) -> list[Route]:
    """Return the default routes of an interface: by its gateway, else on the link itself."""
    made = []
    by_family = {family(each): each for each in interface.gateways}
    for version in interface.default:
        via = by_family.get(version, "")
        scope = SCOPE_LINK if version == "4" and not via else None
        onlink = bool(via) and ip_address(via).is_link_local and version == "4"
        made.append(Route("default", index, FAMILIES[version], via=via, scope=scope, onlink=onlink))
    return made


def route_to(interface: Interface, addresses: Iterable[str], index: int, outside: Netlink) -> None:
    """Set the node's routes to ADDRESSES by an interface."""
    for address in addresses:
        outside.replace_route(host_route(interface, address, index))


def host_route(interface: Interface, address: str, index: int) -> Route:
    """Return the node's route to one address of a container."""
    version = family(address)
    source = next((each for each in interface.sources if family(each) == version), "")
    return Route(
        f"{address}/{ip_address(address).max_prefixlen}",
        index,
        FAMILIES[version],
        source=source,
        scope=SCOPE_LINK if version == "4" else None,
    )


def same_pair(before: Interface, after: Interface) -> bool:
    """Whether the two ends may stay as they are."""
    return all(
        getattr(before, key) == getattr(after, key)
        for key in ("kind", "name", "host_name", "mac", "host_mac", "tap")
    )


def answer(proxies: Iterable[Proxy], outside: Netlink) -> None:
    """Answer for a container's addresses where others look for them."""
    for device, addresses in _by_device(proxies).items():
        link = outside.link(device)
        if link is None:
            continue
        if any(family(each) == "6" for each in addresses):
            set_sysctl(f"net/ipv6/conf/{device}/proxy_ndp", "1", optional=True)
        for address in addresses:
            outside.add_proxy(link.index, address)


def answer_no_more(proxies: Iterable[Proxy], outside: Netlink) -> None:
    """Answer no longer."""
    for device, addresses in _by_device(proxies).items():
        link = outside.link(device)
        if link is not None:
            for address in addresses:
                outside.delete_proxy(link.index, address)


def _by_device(proxies: Iterable[Proxy]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for address, device in proxies:
        found.setdefault(device, []).append(address)
    return found


def check_free(plan: NetworkPlan, old: NetworkPlan | None, links: list[Link]) -> None:
    """Refuse what the kernel would: names and MACs of others' links, missing bridges.

    old: what the container has in place already.
    """
    by_name = {link.name: link for link in links}
    own = {each.host_name for each in (old.interfaces if old else ())}
    for each in plan.interfaces:
        taken = by_name.get(each.host_name)
        if taken is not None and each.host_name not in own and not taken.alias.endswith(plan.uuid):
            raise NetworkError(f"There is a network interface {each.host_name} already")
        bridge = by_name.get(each.bridge)
        if each.bridge and bridge is None:
            raise NetworkError(f"There is no bridge {each.bridge}")
        if bridge is not None and bridge.kind not in {"bridge", "openvswitch"}:
            raise NetworkError(f"{each.bridge} is not a bridge")
