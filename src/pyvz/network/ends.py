"""The two ends of one interface: what the node's end and the inner end are given.

Every function adds requests to a list that links.py sends, so that a start asks the kernel a few
times and not for each of thirty steps.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from pyvz.errors import NetworkError
from pyvz.linux.netlink import SCOPE_LINK, Link, Route, set_sysctl
from pyvz.linux.rtnetlink import LinkChange, Requests
from pyvz.network.address import family
from pyvz.network.base import GATEWAY6, Interface, NetworkPlan, Proxy

FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}


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
        made[f"net/ipv4/neigh/{name}/proxy_delay"] = "0"  # else up to 0.8 s for each answer
        del made[f"net/ipv6/conf/{name}/addr_gen_mode"]
    return made


def prepare(interface: Interface) -> None:
    """Write the settings."""
    for key, value in settings(interface).items():
        set_sysctl(key, value, optional=True)


def plug(interface: Interface, link: Link, bridge: Link | None, outside: Requests) -> None:
    """Let the node's end lead somewhere: up, into its bridge, and with routes to it."""
    if not interface.connected:
        outside.link(link, LinkChange(up=False))
        return
    master = bridge.index if bridge else 0
    outside.link(
        link,
        LinkChange(
            up=True,
            master=master if master != link.master else None,
            mtu=bridge.mtu if bridge is not None and bridge.mtu != link.mtu else 0,
        ),
    )
    if bridge is not None and bridge.kind == "bridge":
        pin(interface, link, outside)
    route_to(interface, interface.routes, link.index, outside)


def pin(interface: Interface, link: Link, outside: Requests) -> None:
    """Tell the bridge which hardware address is behind its port, if only that one may be.

    Then it learns nothing there, so nobody can fill its table or take an address of another port,
    and what goes to an address that it does not know is not sent in there.
    """
    outside.port(link, learning=not interface.filter.mac, flood=not interface.filter.mac)
    if interface.filter.mac:
        outside.station(link, interface.mac)
    else:
        outside.delete_station(link, interface.mac)


def unplug(interface: Interface, link: Link, outside: Requests) -> None:
    """Let the node's end lead nowhere, and stay up: the container sees no change."""
    for address in interface.routes:
        outside.delete_route(host_route(interface, address, link.index))
    if link.master:
        outside.link(link, LinkChange(master=0))


def furnish(interface: Interface, card: Link, inside: Requests, *, mtu: int = 0) -> None:
    """Addresses and routes inside; the link is up there also while its cable is unplugged."""
    arp = False if interface.kind == "routed" else None
    inside.link(card, LinkChange(up=True, arp=arp, mtu=mtu))
    for address in interface.addresses:
        inside.address(card.index, address)
    if interface.connected:
        for route in defaults(interface, card.index):
            inside.route(route)


def alter(before: Interface, after: Interface, index: int, inside: Requests) -> None:
    """Bring the inner end from one plan to the other; what stays is not looked at."""
    had, has = dict.fromkeys(before.addresses), dict.fromkeys(after.addresses)
    for address in had:
        if address not in has:
            inside.delete_address(index, address)
    for address in has:
        if address not in had:
            inside.address(index, address)
    if (before.default, before.gateways) != (after.default, after.gateways):
        for route in defaults(before, index):
            inside.delete_route(route)
    # Also when they are the same: with the last address of a family its routes are gone.
    for route in defaults(after, index):
        inside.route(route)


def scrape(before: Interface, after: Interface, index: int, inside: Requests) -> None:
    """Take away inside what BEFORE may have put there and AFTER has not; the rest is in place."""
    for address in set(before.addresses) - set(after.addresses):
        inside.delete_address(index, address)
    for version, family_ in FAMILIES.items():
        if version not in after.default:
            inside.delete_route(Route("default", index, family_))
    for route in defaults(after, index) if after.connected else ():
        inside.route(route)


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


def route_to(interface: Interface, addresses: Iterable[str], index: int, outside: Requests) -> None:
    """Set the node's routes to ADDRESSES by an interface."""
    listed = list(addresses)
    if interface.tap and any(family(each) == "6" for each in listed):
        # NDP has no proxy for everybody: the gateway must be somebody.
        outside.address(index, f"{GATEWAY6}/64")
    for address in listed:
        outside.route(host_route(interface, address, index))


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


def answer(proxies: Iterable[Proxy], outside: Requests) -> None:
    """Answer for a container's addresses where others look for them."""
    by_device = _by_device(proxies)
    for device, link in outside.links(by_device).items():
        addresses = by_device[device]
        if any(family(each) == "6" for each in addresses):
            set_sysctl(f"net/ipv6/conf/{device}/proxy_ndp", "1", optional=True)
        for address in addresses:
            outside.proxy(link, address)


def answer_no_more(proxies: Iterable[Proxy], outside: Requests) -> None:
    """Answer no longer."""
    by_device = _by_device(proxies)
    for device, link in outside.links(by_device).items():
        for address in by_device[device]:
            outside.delete_proxy(link, address)


def _by_device(proxies: Iterable[Proxy]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for address, device in proxies:
        found.setdefault(device, []).append(address)
    return found


def check_free(plan: NetworkPlan, old: NetworkPlan | None, links: Mapping[str, Link]) -> None:
    """Refuse what the kernel would: names of others' links, missing bridges.

    old: what the container has in place already.
    """
    own = {each.host_name for each in (old.interfaces if old else ())}
    for each in plan.interfaces:
        taken = links.get(each.host_name)
        if taken is not None and each.host_name not in own and not taken.alias.endswith(plan.uuid):
            raise NetworkError(f"There is a network interface {each.host_name} already")
        bridge = links.get(each.bridge)
        if each.bridge and bridge is None:
            raise NetworkError(f"There is no bridge {each.bridge}")
        if bridge is not None and bridge.kind not in {"bridge", "openvswitch"}:
            raise NetworkError(f"{each.bridge} is not a bridge")
