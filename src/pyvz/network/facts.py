"""What the plan must know of the node: its own addresses, uplinks and bridges, as values."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface

from pyvz.linux.netlink import InterfaceAddress, Link
from pyvz.model.vzconf import NodeConfig
from pyvz.network.address import family
from pyvz.network.base import NodeFacts, Uplink

_BROADCASTS = 1000  # packets per second; a machine that works sends a few
_NO_UPLINK = frozenset({"veth", "dummy", "ifb", "tun", "wireguard", "sit", "ip6tnl", "gre"})


def facts(
    config: NodeConfig,
    links: list[Link],
    addresses: list[InterfaceAddress],
    networks: Mapping[str, str],
) -> NodeFacts:
    """Return the facts; networks: name -> bridge of the virtual networks of this node."""
    by_index = {link.index: link for link in links}
    given = [each for each in addresses if each.index in by_index]
    bridges = {link.name: link.name for link in links if link.kind == "bridge"}
    return NodeFacts(
        addresses=frozenset(each.address.partition("/")[0] for each in given),
        uplinks=_uplinks(config, links, given),
        bridges=bridges | dict(networks),
        sources=_sources(config, by_index, given),
        mask=config.values.get("USE_VENET_MASK", "no").lower() == "yes",
        ipv6=config.ipv6,
        broadcasts=_broadcasts(config),
    )


def _broadcasts(config: NodeConfig) -> int:
    text = config.values.get("BROADCAST_LIMIT", "")
    return int(text) if text.isdecimal() else _BROADCASTS


def _uplinks(
    config: NodeConfig, links: list[Link], addresses: list[InterfaceAddress]
) -> tuple[Uplink, ...]:
    """The interfaces by which others look for containers (NEIGHBOUR_DEVS, else all with a net)."""
    wanted = config.values.get("NEIGHBOUR_DEVS", "").split()
    named = {name for name in wanted if name not in {"detect", "all", "list"}}
    found = []
    for link in links:
        # A veth of a node in a namespace of its own is its card; those of containers bear an alias.
        inner = link.kind in _NO_UPLINK and not (link.kind == "veth" and not link.alias)
        if link.loopback or not link.up or inner or (named and link.name not in named):
            continue
        networks = tuple(
            str(ip_interface(each.address).network)
            for each in addresses
            if each.index == link.index and each.scope == 0
        )
        if networks:
            found.append(Uplink(link.name, networks))
    return tuple(found)


def _sources(
    config: NodeConfig, links: Mapping[int, Link], addresses: list[InterfaceAddress]
) -> tuple[str, ...]:
    """The node's address in each family by which containers shall know it (VE_ROUTE_SRC_DEV)."""
    device = config.ve_route_src_dev
    found: dict[str, str] = {}
    for each in addresses:
        link = links[each.index]
        if each.scope != 0 or link.loopback or (device and link.name != device):
            continue
        bare = each.address.partition("/")[0]
        found.setdefault(family(bare), bare)
    return tuple(found.values())
