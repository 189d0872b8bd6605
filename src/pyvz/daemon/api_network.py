"""The interface io.pyvz.Network: virtual networks and IP private networks of the node.

No `from __future__ import annotations` here: see replies.py.
"""

from typing import TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.model.virtualnet import Subnet
from pyvz.operations import nodefirewall, privatenet, virtualnet
from pyvz.operations.node import Node


class NetworkSetting(TypedDict):
    """A setting of a network, named as the option of `prlsrvctl net set`: type, ifname, mac,
    bridge, force, description, ip, dhcp-server, dhcp-ip, ip-scope-start, ip-scope-end, ip6,
    dhcp6-server, dhcp-ip6, ip6-scope-start, ip6-scope-end, vlan, vxlan, remote, remote-del,
    nat-tcp-add, nat-tcp-del, nat-udp-add, nat-udp-del.
    """

    name: str
    value: str


class SubnetReply(TypedDict):
    """Addresses of one family.  address: of the node, with prefix; empty: there are none.
    mask: of the net, dotted or as an address.  server, first, last: of DHCP.
    """

    address: str
    mask: str
    dhcp: bool
    server: str
    first: str
    last: str


class ForwardReply(TypedDict):
    """A port of the node (port) that leads to target's target_port."""

    protocol: str
    name: str
    target: str
    port: int
    target_port: int


class NetworkReply(TypedDict):
    """A virtual network.  type: bridged, host-only, shared.  bound: card, or hardware address.
    slaves: the node's ends of the interfaces in it.  problem: why it cannot be used, or empty.
    blocked: by which firewall of others it is hampered, and what helps, or empty.
    """

    name: str
    uuid: str
    type: str
    bound: str
    bridge: str
    adopted: bool
    force: bool
    description: str
    slaves: list[str]
    up: bool
    problem: str
    blocked: str
    ipv4: SubnetReply
    ipv6: SubnetReply
    vlan: int
    vxlan: int
    remotes: list[str]
    forwards: list[ForwardReply]


class NetworksReply(TypedDict):
    """Virtual networks by name."""

    networks: list[NetworkReply]


class PrivateReply(TypedDict):
    """An IP private network.  nets: with prefix, or "*" (weak)."""

    name: str
    nets: list[str]
    is_global: bool


class PrivatesReply(TypedDict):
    """IP private networks by name."""

    networks: list[PrivateReply]


class Network(Api, VarlinkInterface, name="io.pyvz.Network"):
    """Virtual networks, into which interfaces of containers are plugged, and private networks."""

    @varlinkmethod
    async def List(self, *, names: list[str] | None = None) -> NetworksReply:
        """Return the virtual networks in NAMES, or all."""
        found = await self.query(virtualnet.states, names)
        blocked = await self.query(nodefirewall.problems)
        return {"networks": [_reply(each, blocked.get(each.network.bridge, "")) for each in found]}

    @acting(Empty)
    def Add(self, node: Node, *, name: str, settings: list[NetworkSetting]) -> Work:
        """Make a virtual network and bring it up."""
        return Work("net-add", name, lambda _: virtualnet.add(node, name, _pairs(settings)))

    @acting(Empty)
    def Set(self, node: Node, *, name: str, settings: list[NetworkSetting]) -> Work:
        """Change a virtual network; what it is bound to only while nobody is in it."""
        return Work("net-set", name, lambda _: virtualnet.change(node, name, _pairs(settings)))

    @acting(Empty)
    def Delete(self, node: Node, *, name: str) -> Work:
        """Take a virtual network down and forget it; refused while it is in use."""
        return Work("net-delete", name, lambda _: virtualnet.delete(node, name))

    @varlinkmethod
    async def ListPrivate(self) -> PrivatesReply:
        """Return the IP private networks."""
        found = await self.query(privatenet.states)
        return {
            "networks": [
                {"name": each.name, "nets": list(each.nets), "is_global": each.is_global}
                for each in found
            ]
        }

    @acting(Empty)
    def AddPrivate(
        self, node: Node, *, name: str, nets: list[str], is_global: bool = False
    ) -> Work:
        """Make an IP private network."""
        return Work(
            "privnet-add",
            name,
            lambda _: privatenet.add(node, name, nets, is_global=is_global),
        )

    @acting(Empty)
    def SetPrivate(
        self,
        node: Node,
        *,
        name: str,
        add: list[str],
        remove: list[str],
        is_global: bool | None = None,
    ) -> Work:
        """Change an IP private network: first nets are taken away, then others added."""
        return Work(
            "privnet-set",
            name,
            lambda _: privatenet.change(node, name, add, remove, is_global=is_global),
        )

    @acting(Empty)
    def DeletePrivate(self, node: Node, *, name: str) -> Work:
        """Give an IP private network up."""
        return Work("privnet-delete", name, lambda _: privatenet.delete(node, name))


def _pairs(settings: list[NetworkSetting]) -> list[tuple[str, str]]:
    return [(each["name"], each["value"]) for each in settings]


def _reply(state: virtualnet.NetworkState, blocked: str) -> NetworkReply:
    network = state.network
    return {
        "name": network.name,
        "uuid": network.uuid,
        "type": network.type.value,
        "bound": state.bound,
        "bridge": network.bridge,
        "adopted": network.adopted,
        "force": network.force,
        "description": network.description,
        "slaves": list(state.slaves),
        "up": state.up,
        "problem": state.problem,
        "blocked": blocked,
        "ipv4": _subnet(network.ipv4),
        "ipv6": _subnet(network.ipv6),
        "vlan": network.vlan,
        "vxlan": network.vxlan,
        "remotes": list(network.remotes),
        "forwards": [
            {
                "protocol": each.protocol,
                "name": each.name,
                "target": each.target,
                "port": each.port,
                "target_port": each.target_port,
            }
            for each in network.forwards
        ],
    }


def _subnet(subnet: Subnet) -> SubnetReply:
    own = subnet.interface
    return {
        "address": subnet.address,
        "mask": str(own.network.netmask) if own else "",
        "dhcp": subnet.dhcp,
        "server": subnet.server,
        "first": subnet.first,
        "last": subnet.last,
    }
