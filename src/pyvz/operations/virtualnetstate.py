"""Whether a virtual network is up: now, and when the node starts.

One that is taken down stays known.  It comes up again when somebody is plugged in, and with vzd
where it is for autostart.
"""

from __future__ import annotations

from pyvz.errors import InvalidState
from pyvz.model import event
from pyvz.network import dhcp
from pyvz.network.bridges import Bridges, check_unused
from pyvz.operations import virtualnet
from pyvz.operations.node import Node
from pyvz.store.networks import Networks


def bring_up(node: Node, name: str) -> None:
    """Bring a network up; raises NotFound, NetworkError."""
    [state] = virtualnet.states(node, [name])
    virtualnet.ensure(node, [name])
    if not state.up:
        node.tell(event.NET_UP, name=name, uuid=state.network.uuid)


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


def set_autostart(node: Node, name: str, *, on: bool) -> None:
    """Have a network brought up with vzd, or only when it is used; raises NotFound."""
    store = Networks(node.paths)
    with store.locked():
        network = store.get(name)
        store.save(network._replace(autostart=on))
    node.tell(event.NET_SET, name=name, uuid=network.uuid)
