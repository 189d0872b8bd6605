"""Virtual networks, as `prlsrvctl net` has them, and the routed one as `host-routed`."""

from __future__ import annotations

from typing import Any, Final
from uuid import NAMESPACE_DNS, uuid5
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import NotFound
from pyvz.gateway import failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domainxml import ROUTED
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.model.task import Progress
from pyvz.model.virtualnet import NetworkType, Subnet, VirtualNetwork, bridge_mac
from pyvz.operations import virtualnet
from pyvz.operations.node import Node
from pyvz.operations.virtualnet import NetworkState

Key = dict[str, Any]

INACTIVE, ACTIVE, PERSISTENT, TRANSIENT, AUTOSTART, NO_AUTOSTART = 1, 2, 4, 8, 16, 32
_ROUTED: Final = NetworkState(
    VirtualNetwork(ROUTED, str(uuid5(NAMESPACE_DNS, ROUTED)), NetworkType.HOST_ONLY), up=True
)


def connect_list_all_networks(call: Call, *, need_results: int, flags: int) -> Values:
    """Every network that the filters let through."""
    found = [_key(each) for each in _all(call.office.node) if _selected(each, flags)]
    return {"nets": found if need_results else [], "ret": len(found)}


def connect_num_of_networks(call: Call) -> Values:
    """How many are up."""
    return {"num": sum(each.up for each in _all(call.office.node))}


def connect_list_networks(call: Call, *, maxnames: int) -> Values:
    """The names of those that are up."""
    names = [each.network.name for each in _all(call.office.node) if each.up]
    return {"names": names[: max(0, maxnames)]}


def connect_num_of_defined_networks(call: Call) -> Values:
    """How many are down."""
    return {"num": sum(not each.up for each in _all(call.office.node))}


def connect_list_defined_networks(call: Call, *, maxnames: int) -> Values:
    """The names of those that are down."""
    names = [each.network.name for each in _all(call.office.node) if not each.up]
    return {"names": names[: max(0, maxnames)]}


def network_lookup_by_name(call: Call, *, name: str) -> Values:
    """A network by its name."""
    return {"net": _key(_named(call.office.node, name))}


def network_lookup_by_uuid(call: Call, *, uuid: str) -> Values:
    """A network by its UUID."""
    for each in _all(call.office.node):
        if each.network.uuid == uuid:
            return {"net": _key(each)}
    raise Failure(failure.NO_NETWORK, f"Network not found: no network has the UUID {uuid}")


def network_get_xml_desc(call: Call, *, net: Key, flags: int) -> Values:
    """Describe a network."""
    _ = flags
    return {"xml": described(_named(call.office.node, net["name"]))}


def network_is_active(call: Call, *, net: Key) -> Values:
    """Whether it is up."""
    return {"active": int(_named(call.office.node, net["name"]).up)}


def network_is_persistent(call: Call, *, net: Key) -> Values:
    """All of ours are written down."""
    _named(call.office.node, net["name"])
    return {"persistent": 1}


def network_get_autostart(call: Call, *, net: Key) -> Values:
    """All of ours come up with the node."""
    _named(call.office.node, net["name"])
    return {"autostart": 1}


def network_get_bridge_name(call: Call, *, net: Key) -> Values:
    """The name of its bridge."""
    bridge = _named(call.office.node, net["name"]).network.bridge
    if not bridge:
        raise Failure(failure.INTERNAL, f"The network {net['name']} has no bridge")
    return {"name": bridge}


def network_undefine(call: Call, _progress: Progress, *, net: Key) -> None:
    """Delete a network that nobody uses."""
    virtualnet.delete(call.office.node, _named(call.office.node, net["name"]).network.name)


def network_get_dhcp_leases(
    call: Call, *, net: Key, mac: str | None, need_results: int, flags: int
) -> Values:
    """Who has got an address is not told yet: no lease."""
    _ = (mac, need_results, flags)
    _named(call.office.node, net["name"])
    return {"leases": [], "ret": 0}


def described(state: NetworkState) -> str:
    """Return a network as libvirt's XML."""
    network = state.network
    top = Element("network")
    SubElement(top, "name").text = network.name
    SubElement(top, "uuid").text = network.uuid
    if network.name == ROUTED:
        SubElement(top, "forward", mode="route")
        return text_of(top)
    modes = {NetworkType.SHARED: "nat", NetworkType.BRIDGED: "bridge"}
    if network.type in modes:
        SubElement(top, "forward", mode=modes[network.type])
    if network.bridge:
        SubElement(top, "bridge", name=network.bridge)
    if network.type != NetworkType.BRIDGED:
        SubElement(top, "mac", address=bridge_mac(network.uuid))
        for subnet in network.subnets:
            _subnet(top, subnet)
    return text_of(top)


def _subnet(top: Element, subnet: Subnet) -> None:
    interface = subnet.interface
    if interface is None:
        return
    family = f"ipv{interface.version}"
    element = SubElement(
        top, "ip", family=family, address=str(interface.ip), prefix=str(interface.network.prefixlen)
    )
    if subnet.dhcp and subnet.first and subnet.last:
        SubElement(SubElement(element, "dhcp"), "range", start=subnet.first, end=subnet.last)


def _all(node: Node) -> list[NetworkState]:
    found = [each for each in virtualnet.states(node) if not each.problem]
    return [*found, _ROUTED]


def _named(node: Node, name: str) -> NetworkState:
    if name == ROUTED:
        return _ROUTED
    try:
        return virtualnet.states(node, [name])[0]
    except NotFound as error:
        raise Failure(
            failure.NO_NETWORK, f"Network not found: no network with the name '{name}'"
        ) from error


def _key(state: NetworkState) -> Key:
    return {"name": state.network.name, "uuid": state.network.uuid}


def _selected(state: NetworkState, flags: int) -> bool:
    if flags & (INACTIVE | ACTIVE) and not flags & (ACTIVE if state.up else INACTIVE):
        return False
    if flags & TRANSIENT and not flags & PERSISTENT:
        return False
    return not (flags & NO_AUTOSTART and not flags & AUTOSTART)
