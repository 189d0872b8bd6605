"""The addresses that the guest of a virtual machine has just now.

Its agent knows them.  Without one: those that it was given, by its configuration or by the DHCP
server of one of our networks.  What an agent tells is the guest's word: only addresses are taken
from it, and not many.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.network import dhcp
from pyvz.operations import machineguest
from pyvz.operations.node import Node
from pyvz.store.networks import Networks
from pyvz.vm import guestword

_PATIENCE: Final = 3.0  # seconds for an agent: a list waits for it
_MOST: Final = 64  # cards, and addresses of one


def inside(node: Node, env: Environment) -> list[str]:
    """Return the addresses that its agent tells; none when it tells nothing."""
    answer: Any = None
    with suppress(VZError), machineguest.agent(node, env, patience=_PATIENCE) as talk:
        answer = talk.call("guest-network-get-interfaces", timeout=_PATIENCE)
    return list(dict.fromkeys(_told(answer)))


def leased(node: Node, config: Config) -> list[str]:
    """Return the addresses that our DHCP servers have given to its cards."""
    macs = {(nic.network, nic.mac.lower()) for nic in config.network.interfaces or () if nic.mac}
    wanted = {name for name, _ in macs}
    found: list[str] = []
    for network in Networks(node.paths).stored() if wanted else ():
        if network.name in wanted:
            leases = dhcp.leases(dhcp.files(node.paths, network.uuid))
            found += [each.address for each in leases if (network.name, each.mac.lower()) in macs]
    return found


def _told(answer: object) -> Iterator[str]:
    for card in guestword.rows(answer, most=_MOST):
        for each in guestword.rows(card.get("ip-addresses"), most=_MOST):
            with suppress(ValueError):
                address = ip_address(str(each.get("ip-address", ""))[:64])
                if not address.is_loopback:
                    yield str(address)
