"""The node as a router: switched on for shared networks, and never off again (others may need it).

For IPv6 a node that forwards stops listening to routers where accept_ra is 1, and so would lose its
own way out; such interfaces get 2, which means "listen all the same" (ip-sysctl.rst).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pyvz.linux.netlink import set_sysctl, sysctl
from pyvz.model.virtualnet import Subnet

log = logging.getLogger(__name__)

_IPV4 = "net/ipv4/ip_forward"
_IPV6 = "net/ipv6/conf/all/forwarding"


def forward(subnets: Iterable[Subnet], links: Iterable[str]) -> None:
    """Let the node forward the families of SUBNETS; links: its interfaces."""
    versions = {6 if ":" in each.address else 4 for each in subnets}
    if 4 in versions and sysctl(_IPV4) == "0":
        log.info("the node forwards IPv4 from now on, for its shared networks")
        set_sysctl(_IPV4, "1")
    if 6 in versions and sysctl(_IPV6) == "0":
        log.info("the node forwards IPv6 from now on, for its shared networks")
        for name in links:
            key = f"net/ipv6/conf/{name}/accept_ra"
            if sysctl(key) == "1":
                set_sysctl(key, "2")
        set_sysctl(_IPV6, "1")
