"""What a virtual network is on the node: the links that are to be there, as values.

bridged    bridge <- the card, or a VLAN link on it
host-only  bridge with addresses (<- a VXLAN link)
shared     the same, and NAT (nat.py); DHCP and DNS of both by dnsmasq (dhcp.py)

Links that we make carry the alias "<instance>:net:<uuid>": by it, never by a name, we know what is
ours and may be removed.  `bridges.py` brings the node to a Shape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from pyvz.errors import NetworkError
from pyvz.linux.netlink import InterfaceAddress, Link
from pyvz.model.virtualnet import NetworkType, VirtualNetwork, bridge_mac

VXLAN_PORT = 4789  # IANA; the kernel's own default, 8472, is of the time before it
VXLAN_OVERHEAD = {4: 50, 6: 70}  # bytes of the outer headers (RFC 7348)

_LONGEST = 15


class Port(NamedTuple):
    """A link in the bridge.  kind: "card" (the node's, never removed), "vlan", "vxlan".

    attributes: of the link when it is made.  remotes: of a VXLAN, the other nodes.
    """

    name: str
    kind: str
    attributes: tuple[tuple[str, Any], ...] = ()
    remotes: tuple[str, ...] = ()


class Shape(NamedTuple):
    """Everything of one network that is links and addresses.

    adopted: the bridge is somebody else's and stays as it is.  mtu: 0 leaves the kernel's.
    force: the addresses of the card move to the bridge.
    """

    uuid: str
    bridge: str
    mac: str
    adopted: bool = False
    mtu: int = 0
    addresses: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    force: bool = False

    @property
    def ipv6(self) -> bool:
        """Whether the node has an IPv6 address in it."""
        return self.force or any(":" in each for each in self.addresses)


class Ground(NamedTuple):
    """The links and addresses of the node, as they are."""

    links: tuple[Link, ...]
    addresses: tuple[InterfaceAddress, ...]

    def link(self, name: str) -> Link | None:
        """Return the link of that name."""
        return next((link for link in self.links if link.name == name), None)

    def by_index(self, index: int) -> Link | None:
        """Return the link of that index."""
        return next((link for link in self.links if link.index == index), None)

    def addresses_of(self, index: int) -> list[str]:
        """Return the addresses of a link that others may use (scope universe)."""
        return [each.address for each in self.addresses if (each.index, each.scope) == (index, 0)]


def alias(instance: str, uuid: str) -> str:
    """Return the alias of the links of a network."""
    return f"{instance}:net:{uuid}"


def card(network: VirtualNetwork, ground: Ground) -> str:
    """Return the name of the card that a network is bound to, "" when it is bound to none.

    Raises NetworkError when the node has no such card.
    """
    if network.interface:
        if ground.link(network.interface) is None:
            raise NetworkError(f"Failed to find network adapter {network.interface} on the server.")
        return network.interface
    if not network.mac:
        return ""
    found = [link for link in ground.links if link.mac == network.mac and link.kind != "bridge"]
    if not found:
        raise NetworkError(f"Failed to find network adapter {network.mac} on the server.")
    return min(found, key=lambda link: (link.kind != "", link.index)).name


def shape(network: VirtualNetwork, ground: Ground) -> Shape:
    """Return the links of a network whose bridge has been chosen.

    Raises NetworkError when the node has no such card, or the bridge must be ours and is not.
    """
    bound = card(network, ground)
    ports = _ports(network, bound, ground)
    mac, mtu = bridge_mac(network.uuid), 0
    if network.force and not network.vlan:
        # The switch, and whoever has rented us the port, know the card's address.
        mac = next(link.mac for link in ground.links if link.name == bound)
    if network.vxlan:
        mtu = _vxlan_mtu(network, bound, ground)
    addresses: dict[str, None] = {}
    for subnet in network.subnets:
        addresses[subnet.address] = None
        own = subnet.interface
        if subnet.dhcp and subnet.server and own is not None and subnet.server != str(own.ip):
            addresses[f"{subnet.server}/{own.network.prefixlen}"] = None
    return Shape(
        network.uuid,
        network.bridge,
        mac,
        adopted=network.adopted,
        mtu=mtu,
        addresses=tuple(addresses),
        ports=ports,
        force=network.force,
    )


def chosen(network: VirtualNetwork, ground: Ground, taken: Collection[str]) -> VirtualNetwork:
    """Return the network with its bridge: an existing one of its card, or a name that is free.

    taken: bridges of the other networks.  Raises NetworkError where making one would cut the node
    off its network.
    """
    if network.bridge:
        return _named(network, ground)
    if network.type is not NetworkType.BRIDGED:
        return network._replace(bridge=_free("virbr", 1, ground, taken))
    bound = card(network, ground)
    link = ground.link(bound)
    if link is None or network.vlan:
        return network._replace(bridge=_free("br", 0, ground, taken))
    if link.kind == "bridge":
        return network._replace(bridge=link.name, adopted=True)
    master = ground.by_index(link.master)
    if master is not None and master.kind == "bridge":
        return network._replace(bridge=master.name, adopted=True)
    if master is not None:
        raise NetworkError(
            f"{bound} is part of {master.name}", hint=f"Bind the network to {master.name}."
        )
    check_free_card(network, link, ground)
    return network._replace(bridge=_free("br", 0, ground, taken))


def check_free_card(network: VirtualNetwork, link: Link, ground: Ground) -> None:
    """Refuse to put a card with addresses into a bridge, unless that was asked for."""
    own = ground.addresses_of(link.index)
    if own and not network.force:
        raise NetworkError(
            f"{link.name} has the address {own[0]}: the node would lose its network when the card "
            f"becomes part of a bridge",
            hint="Make a bridge of it with the distribution's own network configuration, and bind "
            "the network to that; or let its addresses move to a bridge with --force on.",
        )


def default_card(ground: Ground, route: int) -> str:
    """Return the card of the network `Bridged`: the one by which the node reaches the world.

    route: index of the link of the default route.  A bridge stands for its first card.
    """
    link = ground.by_index(route)
    if link is None:
        return ""
    if link.kind != "bridge":
        return link.name
    cards = [each for each in ground.links if each.master == link.index and not each.alias]
    named = [each for each in cards if each.kind not in {"veth", "tun"}]
    return (named or [link])[0].name


def slaves(ground: Ground, bridge: str) -> list[Link]:
    """Return the ports of a bridge."""
    found = ground.link(bridge)
    return [link for link in ground.links if found is not None and link.master == found.index]


def nets(ground: Ground, but: Iterable[str]) -> dict[str, str]:
    """Return net -> owner of the node's addresses, but those of the links named."""
    left = set(but)
    found = {}
    for each in ground.addresses:
        link = ground.by_index(each.index)
        if link is not None and each.scope == 0 and not link.loopback and link.name not in left:
            found[each.address] = link.name
    return found


def _named(network: VirtualNetwork, ground: Ground) -> VirtualNetwork:
    """A bridge that somebody has named: ours, or one that is there and no other network's."""
    link = ground.link(network.bridge)
    if link is None or network.adopted or link.alias.endswith(f":net:{network.uuid}"):
        return network
    if link.kind not in {"bridge", "openvswitch"}:
        raise NetworkError(f"{network.bridge} is not a bridge")
    if network.type is not NetworkType.BRIDGED or network.vlan:
        raise NetworkError(f"There is a network interface {network.bridge} already")
    return network._replace(adopted=True)


def _ports(network: VirtualNetwork, bound: str, ground: Ground) -> tuple[Port, ...]:
    if network.vxlan:
        return (_vxlan(network, bound, ground),)
    if network.type is not NetworkType.BRIDGED or network.adopted or not bound:
        return ()
    if not network.vlan:
        return (Port(bound, "card"),)
    link = ground.link(bound)
    name = f"{bound}.{network.vlan}"
    if len(name) > _LONGEST:
        name = f"vlan{network.vlan}-{network.uuid[:6]}"
    return (Port(name, "vlan", (("link", link.index if link else 0), ("vlan_id", network.vlan))),)


def _vxlan(network: VirtualNetwork, bound: str, ground: Ground) -> Port:
    attributes: dict[str, Any] = {
        "vxlan_id": network.vxlan,
        "vxlan_port": VXLAN_PORT,
        "vxlan_learning": True,
        "vxlan_ttl": 64,
    }
    link = ground.link(bound)
    if link is not None:
        version = _version(network)
        own = [each for each in ground.addresses_of(link.index) if _is(version, each)]
        if not own:
            raise NetworkError(f"{bound} has no IPv{version} address for a VXLAN")
        attributes["vxlan_link"] = link.index
        key = "vxlan_local" if version == 4 else "vxlan_local6"
        attributes[key] = own[0].partition("/")[0]
    elif _version(network) == 6:
        attributes["vxlan_local6"] = "::"
    name = f"vx{network.vxlan}-{network.uuid[:4]}"
    return Port(name, "vxlan", tuple(attributes.items()), network.remotes)


def _vxlan_mtu(network: VirtualNetwork, bound: str, ground: Ground) -> int:
    link = ground.link(bound)
    return (link.mtu if link else 1500) - VXLAN_OVERHEAD[_version(network)]


def _version(network: VirtualNetwork) -> int:
    return 6 if any(":" in remote for remote in network.remotes) else 4


def _is(version: int, address: str) -> bool:
    return (":" in address) == (version == 6)


def _free(prefix: str, first: int, ground: Ground, taken: Collection[str]) -> str:
    """Return the first name that neither a link nor another network has."""
    used = {link.name for link in ground.links} | set(taken)
    number = first
    while f"{prefix}{number}" in used:
        number += 1
    return f"{prefix}{number}"
