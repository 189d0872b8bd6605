"""Cards that shall have their address by DHCP and have none: told, for the container runs anyway.

Nobody waits for a lease: a start is over when init has been executed, and who asks for the address
is the guest.  A network without a DHCP server would be noticed by nobody.
"""

from __future__ import annotations

import logging
from ipaddress import ip_interface

from pyvz.linux.netlink import InterfaceAddress
from pyvz.linux.rtnetlink import Requests
from pyvz.model import event
from pyvz.model.environment import Kind
from pyvz.model.grammar_net import NetIf
from pyvz.network import plan
from pyvz.operations.node import Node
from pyvz.store.networks import Networks

log = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds; a bridge that looks for loops keeps a port quiet as long (802.1D)
_GLOBAL = 0  # scope


def patience(node: Node) -> float:
    """Return how many seconds a card may be without an address (DHCP_WAIT of vz.conf); 0: ever."""
    text = node.config().values.get("DHCP_WAIT", "")
    return float(text) if text.isdecimal() else _PATIENCE


def look(node: Node, uuid: str) -> None:
    """Tell of every card of a running container that has no address; raises NotRunning, ..."""
    env = node.registry.resolve(uuid)
    if env.kind == Kind.VM:
        return
    for card, version in unleased(node, uuid):
        log.warning(
            "%s: %s has no IPv%d address by DHCP%s",
            env.name, card.ifname, version, _reason(node, card.network, version),
        )  # fmt: skip
        node.publish(
            event.NO_LEASE, env, interface=card.ifname, network=card.network, version=str(version)
        )


def unleased(node: Node, uuid: str) -> list[tuple[NetIf, int]]:
    """Return the cards of a running container without the address that DHCP shall give, by version.

    Raises NotRunning, EnvironmentNotFound, NetworkError.
    """
    config = node.registry.config(node.registry.resolve(uuid))
    wanted = [
        (card, version)
        for card in plan.netifs(config)
        for version, asked in ((4, card.dhcp), (6, card.dhcp6))
        if asked and card.connected and card.type != "routed"
    ]
    if not wanted:
        return []
    with node.runtime.network(uuid) as access:
        inside = Requests(access.netlink)
        links = inside.links(card.ifname for card, _ in wanted)
        given = {(x.index, _version(x)) for x in inside.addresses() if x.scope == _GLOBAL}
    return [
        (card, version)
        for card, version in wanted
        if card.ifname in links and (links[card.ifname].index, version) not in given
    ]


def _version(address: InterfaceAddress) -> int:
    return ip_interface(address.address).version


def _reason(node: Node, name: str, version: int) -> str:
    """What is known of the network, as the end of a sentence."""
    option = "--dhcp-server" if version == 4 else "--dhcp6-server"
    for network in Networks(node.paths).stored():
        if network.name == name and not network.adopted and not network.interface:
            served = network.ipv4 if version == 4 else network.ipv6
            if not served.dhcp:
                return f": its network has no DHCP server (prlsrvctl net set {name} {option} on)"
    return f": is there a DHCP server in the network {name}?"
