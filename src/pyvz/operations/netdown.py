"""Taking a virtual network down that stays known, until somebody is plugged in or vzd starts."""

from __future__ import annotations

from pyvz.errors import InvalidState
from pyvz.model import event
from pyvz.network import dhcp
from pyvz.network.bridges import Bridges, check_unused
from pyvz.operations.node import Node
from pyvz.store.networks import Networks


def take_down(node: Node, name: str) -> None:
    """Remove a network's bridge and end its DHCP server; raises NotFound, NetworkInUse."""
    store, bridges = Networks(node.paths), Bridges(node.paths)
    with store.locked():
        network = store.get(name)
        if network.adopted or not network.bridge:
            raise InvalidState(f"The bridge of the network {name} is not ours to take down")
        check_unused(name, bridges.in_use(network.uuid, network.bridge))
        dhcp.Server(node.paths, network.uuid).stop()
        bridges.down(network.uuid, network.bridge)
    node.tell(event.NET_DOWN, name=name, uuid=network.uuid)
