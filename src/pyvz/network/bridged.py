"""Bridged interfaces (veth): a card of the container's own, plugged into a bridge of the node."""

from __future__ import annotations

from pyvz.errors import NetworkError
from pyvz.model.grammar_net import NetIf
from pyvz.network.address import bare, family, parsed, with_prefix
from pyvz.network.base import Filter, Interface, NodeFacts, card_mac, host_mac_of, host_name_of


def interface(uuid: str, netif: NetIf, facts: NodeFacts) -> Interface:
    """Return the plan of a bridged interface; NetworkError when its network is not there."""
    mac = netif.mac or card_mac(uuid, netif.ifname)
    given = [each for each in (*netif.ip, *netif.ip6) if facts.ipv6 or ":" not in each.ip]
    families = {family(bare(each.ip)) for each in given}
    # Without an address nothing can be sent there yet (DHCP brings one, with a gateway).
    gateways = tuple(
        each
        for each in (netif.gw, netif.gw6)
        if each and (family(each) in families or parsed(each).is_link_local)
    )
    configured = netif.configure != "none"
    return Interface(
        kind="bridged",
        name=netif.ifname,
        host_name=netif.host_ifname or host_name_of(mac),
        mac=mac,
        host_mac=netif.host_mac or host_mac_of(mac),
        addresses=tuple(map(with_prefix, given)) if configured else (),
        default="".join(family(each) for each in gateways) if configured else "",
        gateways=gateways if configured else (),
        bridge=_bridge(netif, facts),
        connected=netif.connected,
        filter=Filter(
            netif.mac_filter, _allowed(netif), facts.broadcasts if netif.mac_filter else 0
        ),
    )


def _bridge(netif: NetIf, facts: NodeFacts) -> str:
    if not netif.network:
        return ""
    if netif.network not in facts.bridges:
        raise NetworkError(
            f"There is no network '{netif.network}' for the interface {netif.ifname}",
            hint="prlsrvctl net list shows the networks.",
        )
    return facts.bridges[netif.network]


def _allowed(netif: NetIf) -> tuple[str, ...] | None:
    """Return the source addresses that may pass; None: any.

    What comes from DHCP, or is set by hand inside an interface without addresses, nobody outside
    knows; there only the hardware address is checked.
    """
    given = (*netif.ip, *netif.ip6)
    if not netif.ip_filter or netif.dhcp or netif.dhcp6 or not given:
        return None
    return tuple(bare(each.ip) for each in given)
