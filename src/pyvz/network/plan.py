"""The plan of a container's network: from its configuration and the node's facts, pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import cast

from pyvz.errors import AddressInUse, BadValue, NetworkError
from pyvz.model.config import Config
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf
from pyvz.network import address as addresses
from pyvz.network.address import family
from pyvz.network.base import (
    ROUTED,
    Interface,
    InterfaceKind,
    NetworkPlan,
    NodeFacts,
    Proxy,
    Uplink,
    host_mac_of,
)

_KINDS = {"routed": "routed", "bridge": "bridged", "": "bridged"}  # type of NETIF -> module


def netifs(config: Config) -> tuple[NetIf, ...]:
    """Return the interfaces, the one for IP_ADDRESS (venet0) first; it is there when needed."""
    network = config.network
    return _netifs(network.interfaces, network.ip, needed=bool(network.ip or network.external_ip))


# One `set` asks eight times, about two configurations.
@lru_cache(maxsize=64)
def _netifs(
    interfaces: tuple[NetIf, ...], ip: tuple[Address, ...], *, needed: bool
) -> tuple[NetIf, ...]:
    given = {netif.ifname: netif for netif in interfaces}
    routed = given.pop(ROUTED, None)
    if needed or routed is not None:
        routed = (routed or NetIf(ROUTED))._replace(type="routed")
        every = (*routed.ip, *routed.ip6, *ip)
        own = tuple({each.ip: each for each in every}.values())
        routed = routed._replace(
            ip=tuple(each for each in own if ":" not in each.ip),
            ip6=tuple(each for each in own if ":" in each.ip),
        )
        return (routed, *given.values())
    return tuple(given.values())


def plan(uuid: str, config: Config, facts: NodeFacts, *, taps: bool = False) -> NetworkPlan:
    """Return what CONFIG asks for; raises BadValue, NetworkError, AddressInUse.

    taps: the cards are those of a virtual machine.
    """
    interfaces = tuple(_interface(uuid, netif, facts) for netif in netifs(config))
    interfaces = tuple(_with_external(each, config, facts) for each in interfaces)
    if taps:
        interfaces = tuple(map(_as_tap, interfaces))
    interfaces = _one_default(interfaces)
    _check_names(interfaces)
    _check_addresses(interfaces, facts)
    proxies = tuple(_proxies(interfaces, facts))
    return NetworkPlan(uuid, interfaces, proxies, devices=tuple(config.network.devices))


def _as_tap(interface: Interface) -> Interface:
    """Return the card of a virtual machine, whose other end is a machine of its own.

    With one hardware address for both they would have the same link-local address.
    """
    return interface._replace(tap=True, host_mac=host_mac_of(interface.mac))


def wanted(config: Config) -> bool:
    """Whether the container has a network at all."""
    return bool(netifs(config) or config.network.devices)


def reserved(config: Config) -> tuple[str, ...]:
    """Return every bare address that is the container's, running or not."""
    given = [each for netif in netifs(config) for each in (*netif.ip, *netif.ip6)]
    return _bare((*given, *config.network.external_ip))


@lru_cache(maxsize=16)
def _bare(given: tuple[Address, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses.bare(each.ip) for each in given))


def _interface(uuid: str, netif: NetIf, facts: NodeFacts) -> Interface:
    module = cast("InterfaceKind", import_module(f"pyvz.network.{_KINDS[netif.type]}"))
    return module.interface(uuid, netif, facts)


def _with_external(interface: Interface, config: Config, facts: NodeFacts) -> Interface:
    """Return a routed interface with the external addresses: led to it, but not on it.

    What they are for inside (address translation, a tunnel) is the container's own matter.
    """
    if interface.name != ROUTED or not config.network.external_ip:
        return interface
    given = [addresses.bare(x.ip) for x in config.network.external_ip]
    more = [each for each in given if facts.ipv6 or ":" not in each]
    allowed = interface.filter.addresses
    return interface._replace(
        routes=tuple(dict.fromkeys((*interface.routes, *more))),
        filter=interface.filter._replace(
            addresses=None if allowed is None else tuple(dict.fromkeys((*allowed, *more)))
        ),
    )


def _one_default(interfaces: tuple[Interface, ...]) -> tuple[Interface, ...]:
    """Leave one default route per family: a gateway that was named, else the first interface."""
    made: list[Interface] = []
    named = {family(gateway) for each in interfaces for gateway in each.gateways}
    taken: set[str] = set()
    for each in interfaces:
        own = {family(gateway) for gateway in each.gateways}
        keep = "".join(x for x in each.default if x not in taken and (x in own or x not in named))
        taken.update(keep)
        gateways = tuple(gateway for gateway in each.gateways if family(gateway) in keep)
        made.append(each._replace(default=keep, gateways=gateways))
    return tuple(made)


def _check_names(interfaces: Iterable[Interface]) -> None:
    listed = list(interfaces)
    for what, names in (
        ("name", [each.name for each in listed]),
        ("name on the node", [each.host_name for each in listed]),
        ("hardware address", [each.mac for each in listed]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise NetworkError(f"Two interfaces have the same {what}: {twice[0]}")
    for each in listed:
        if each.name == "lo":
            raise BadValue("An interface cannot be named lo")


def _check_addresses(interfaces: Iterable[Interface], facts: NodeFacts) -> None:
    seen: dict[str, str] = {}
    for each in interfaces:
        bare = {address.partition("/")[0] for address in each.addresses} | set(each.routes)
        for address in sorted(bare):
            addresses.check(address)
            if address in facts.addresses:
                raise AddressInUse(f"The address {address} is an address of the node itself")
            if address in seen:
                raise AddressInUse(f"The address {address} is on {seen[address]} already")
        seen |= dict.fromkeys(bare, each.name)
        if each.kind == "bridged":
            for address in each.addresses:
                own = ip_interface(address)
                _check_host(own.ip, own.network)
        for gateway in each.gateways:
            _check_gateway(each, gateway)


def _check_host(ip: IPv4Address | IPv6Address, network: IPv4Network | IPv6Network) -> None:
    """Refuse an address that stands for all of a network where it is used."""
    if network.version == 4 and network.prefixlen < 31:
        for word, whole in (
            ("broadcast", network.broadcast_address),
            ("first", network.network_address),
        ):
            if ip == whole:
                raise BadValue(f"{ip} is the {word} address of {network}: nobody can have it")


def _check_gateway(interface: Interface, gateway: str) -> None:
    """A gateway must be a neighbour, and nobody's own address."""
    own = [ip_interface(each) for each in interface.addresses if family(each) == family(gateway)]
    ip = ip_address(gateway)
    if any(ip == each.ip for each in own):
        raise BadValue(f"The gateway {gateway} is an address of {interface.name} itself")
    if own and not ip.is_link_local and not any(ip in each.network for each in own):
        raise BadValue(
            f"The gateway {gateway} is not in a network of the interface {interface.name}",
            hint="Give the address with its mask, like 10.0.0.2/24.",
        )


def _proxies(interfaces: Iterable[Interface], facts: NodeFacts) -> Iterable[Proxy]:
    """The addresses that others look for on a network of the node: it answers for them there."""
    for each in interfaces:
        for address in each.routes:
            yield from _answered(address, facts.uplinks)


@lru_cache(maxsize=1 << 16)
def _answered(address: str, uplinks: tuple[Uplink, ...]) -> tuple[Proxy, ...]:
    ip, found = addresses.parsed(address), []
    for uplink in uplinks:
        for network in map(ip_network, uplink.networks):
            if ip in network:
                _check_host(ip, network)
                found.append(Proxy(address, uplink.name))
    return tuple(dict.fromkeys(found))
