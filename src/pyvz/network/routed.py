"""Routed interfaces (venet): a point-to-point link to the node, which has a route per address.

Both ends have the same hardware address and no ARP: a frame is addressed to whoever is at the
other end, because a neighbour on such a link gets the address of the link itself (arp_constructor,
ndisc_constructor).  So there is nobody to ask and nobody to lie to: the default route needs no
gateway, as on the venet of the original, and an IPv6 address needs no duplicate detection.
"""

from __future__ import annotations

from pyvz.model.grammar_net import NetIf
from pyvz.network.address import bare, family, with_prefix
from pyvz.network.base import (
    ROUTED,
    Filter,
    Interface,
    NodeFacts,
    routed_host_name,
    routed_mac,
    routed_name_of,
)


def interface(uuid: str, netif: NetIf, facts: NodeFacts) -> Interface:
    """Return the plan of a routed interface; its addresses are those of NETIF."""
    mac = netif.mac or routed_mac(uuid)
    given = [each for each in (*netif.ip, *netif.ip6) if facts.ipv6 or ":" not in each.ip]
    own = tuple(bare(each.ip) for each in given)
    families = "".join(sorted({family(each) for each in own}))
    host_name = netif.host_ifname or (
        routed_name_of(netif.mac)
        if netif.mac and netif.ifname != ROUTED
        else routed_host_name(uuid)
    )
    configured = netif.configure != "none"
    return Interface(
        kind="routed",
        name=netif.ifname,
        host_name=host_name,
        mac=mac,
        host_mac=mac,
        addresses=tuple(with_prefix(each, mask=facts.mask) for each in given) if configured else (),
        default=families if configured else "",
        routes=own,
        sources=tuple(each for each in facts.sources if family(each) in families),
        connected=netif.connected,
        filter=Filter(mac=True, addresses=own),
    )
