"""Port forwards of shared networks: which address a rule means, and which rules can be.

A target is an address of the network, or a container by name or id: then its address in the network
counts, from its configuration or from its lease.  A container without one is left out until it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface

from pyvz.errors import BadValue, VZError
from pyvz.model.config import Config
from pyvz.model.virtualnet import PortForward, VirtualNetwork
from pyvz.network import dhcp
from pyvz.network.base import card_mac
from pyvz.network.nat import Redirection
from pyvz.operations.node import Node


def check(network: VirtualNetwork, others: Iterable[VirtualNetwork]) -> None:
    """Raise BadValue for an address outside of the network, and a port that leads elsewhere."""
    taken = {(rule.protocol, rule.port): each.name for each in others for rule in each.forwards}
    for rule in network.forwards:
        owner = taken.get((rule.protocol, rule.port))
        if owner is not None:
            raise BadValue(
                f"The {rule.protocol} port {rule.port} is forwarded into the network {owner}"
            )
        if _is_address(rule.target) and not _within(network, rule.target):
            raise BadValue(f"{rule.target} is not an address of the network {network.name}")


def redirections(node: Node, network: VirtualNetwork) -> tuple[Redirection, ...]:
    """Return what the rules of a network mean now."""
    made = []
    for rule in network.forwards:
        for address in _addresses(node, network, rule):
            made.append(Redirection(rule.protocol, rule.port, address, rule.target_port))
    return tuple(made)


def _addresses(node: Node, network: VirtualNetwork, rule: PortForward) -> list[str]:
    """Return at most one address per family."""
    if _is_address(rule.target):
        return [str(ip_address(rule.target))]
    try:
        env = node.registry.resolve(rule.target)
        config = node.registry.config(env)
    except VZError:
        return []
    found = [*_configured(config, network), *_leased(node, env.uuid, config, network)]
    by_family: dict[int, str] = {}
    for address in found:
        if _within(network, address):
            by_family.setdefault(ip_address(address).version, address)
    return list(by_family.values())


def _configured(config: Config, network: VirtualNetwork) -> list[str]:
    return [
        each.ip
        for netif in config.network.interfaces
        if netif.network == network.name
        for each in (*netif.ip, *netif.ip6)
    ]


def _leased(node: Node, uuid: str, config: Config, network: VirtualNetwork) -> list[str]:
    macs = {
        (netif.mac or card_mac(uuid, netif.ifname)).lower()
        for netif in config.network.interfaces
        if netif.network == network.name
    }
    places = dhcp.files(node.paths, network.uuid)
    return [each.address for each in dhcp.leases(places) if each.mac.lower() in macs]


def _within(network: VirtualNetwork, address: str) -> bool:
    ip = ip_address(address)
    return any(ip in ip_interface(subnet.address).network for subnet in network.subnets)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
