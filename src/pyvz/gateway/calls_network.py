"""Virtual networks, as `prlsrvctl net` has them, and the routed one as `host-routed`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final
from uuid import NAMESPACE_DNS, uuid5
from xml.etree.ElementTree import Element, SubElement

from pyvz.errors import NotFound
from pyvz.gateway import failure, netdefine
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.domainxml import ROUTED
from pyvz.gateway.failure import Failure
from pyvz.gateway.netdefine import Wanted
from pyvz.gateway.nodexml import text_of
from pyvz.model.task import Progress
from pyvz.model.virtualnet import NetworkType, Subnet, VirtualNetwork, bridge_mac
from pyvz.network import dhcp
from pyvz.network.dhcp import Lease
from pyvz.operations import virtualnet, virtualnetstate
from pyvz.operations.node import Node
from pyvz.operations.virtualnet import NetworkState

Key = dict[str, Any]

ADD_LAST, DELETE, MODIFY, ADD_FIRST = 3, 2, 1, 4  # commands of network_update
SECTIONS: Final = {
    1: "bridge", 2: "domain", 3: "ip", 4: "ip-dhcp-host", 5: "ip-dhcp-range", 6: "forward",
    7: "forward-interface", 8: "forward-pf", 9: "portgroup", 10: "dns-host", 11: "dns-txt",
    12: "dns-srv",
}  # fmt: skip
DHCP_RANGE: Final = 5
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
    """Whether it comes up with the node."""
    return {"autostart": int(_named(call.office.node, net["name"]).network.autostart)}


def network_get_bridge_name(call: Call, *, net: Key) -> Values:
    """The name of its bridge, "" without one: Ansible asks it of every network, and fails else."""
    return {"name": _named(call.office.node, net["name"]).network.bridge}


def network_define_xml(call: Call, _progress: Progress, *, xml: str) -> Values:
    """Make a network, which is down then, or change the one with that name or UUID."""
    made = _defined(call.office.node, netdefine.read(xml))
    return {"net": {"name": made.name, "uuid": made.uuid}}


def network_create_xml(call: Call, _progress: Progress, *, xml: str) -> Values:
    """Make a network and bring it up; nothing of ours is transient, so it stays."""
    made = _defined(call.office.node, netdefine.read(xml))
    virtualnetstate.bring_up(call.office.node, made.name)
    return {"net": {"name": made.name, "uuid": made.uuid}}


def network_create(call: Call, _progress: Progress, *, net: Key) -> None:
    """Bring a network up; a bridge that is not ours always is."""
    state = _named(call.office.node, net["name"])
    if state.up and not state.network.adopted:
        raise Failure(failure.OPERATION_INVALID, "network is already active")
    virtualnetstate.bring_up(call.office.node, _ours(state))


def network_destroy(call: Call, _progress: Progress, *, net: Key) -> None:
    """Take a network down that nobody uses; it stays known."""
    state = _named(call.office.node, net["name"])
    if not state.up:
        raise Failure(failure.OPERATION_INVALID, f"network '{net['name']}' is not active")
    virtualnetstate.take_down(call.office.node, _ours(state))


def network_undefine(call: Call, _progress: Progress, *, net: Key) -> None:
    """Delete a network that nobody uses."""
    virtualnet.delete(call.office.node, _ours(_named(call.office.node, net["name"])))


def network_set_autostart(call: Call, _progress: Progress, *, net: Key, autostart: int) -> None:
    """Have a network come up with the node, or only when it is used."""
    name = _ours(_named(call.office.node, net["name"]))
    virtualnetstate.set_autostart(call.office.node, name, on=bool(autostart))


def network_update(  # noqa: PLR0913  the fields of the call
    call: Call,
    _progress: Progress,
    *,
    net: Key,
    command: int,
    section: int,
    parentIndex: int,
    xml: str,
    flags: int,
) -> None:
    """Change a part of a network, in force at once and saved: the range of addresses of DHCP."""
    _ = (parentIndex, flags)
    name = _ours(_named(call.office.node, net["name"]))
    what = SECTIONS.get(section, f"number {section}")
    if section != DHCP_RANGE:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"The section {what} of a network cannot be changed; ip-dhcp-range can",
        )
    if command not in {MODIFY, ADD_LAST, ADD_FIRST, DELETE}:
        raise Failure(failure.INVALID_ARGUMENT, f"There is no command {command}")
    settings = netdefine.dhcp_range(xml)
    six = "6" if settings[0][0].startswith("ip6") else ""
    on = command != DELETE
    server = (f"dhcp{six}-server", "on" if on else "off")
    virtualnet.change(call.office.node, name, [server, *settings] if on else [server])


def network_get_dhcp_leases(
    call: Call, *, net: Key, mac: str | None, need_results: int, flags: int
) -> Values:
    """Who has got which address, of all or of one hardware address."""
    _ = flags
    network = _named(call.office.node, net["name"]).network
    every = dhcp.leases(dhcp.files(call.office.node.paths, network.uuid))
    found = [
        _lease(network, each) for each in every if mac is None or each.mac.lower() == mac.lower()
    ]
    return {"leases": found if need_results else [], "ret": len(found)}


def _lease(network: VirtualNetwork, lease: Lease) -> Key:
    address = ip_address(lease.address)
    subnet = network.ipv6 if address.version == 6 else network.ipv4
    prefix = subnet.interface.network.prefixlen if subnet.interface is not None else 0
    six = address.version == 6
    return {
        "iface": network.bridge, "expirytime": lease.expires, "type": int(six),
        "mac": None if six else lease.mac, "iaid": lease.mac if six else None,
        "ipaddr": str(address), "prefix": prefix, "hostname": lease.hostname or None,
        "clientid": lease.client or None,
    }  # fmt: skip


def _defined(node: Node, wanted: Wanted) -> VirtualNetwork:
    """Make or change the network that is wanted; raises Failure for a name of another one."""
    for state in _all(node):
        network = state.network
        if wanted.uuid and wanted.uuid == network.uuid and wanted.name != network.name:
            raise Failure(
                failure.OPERATION_UNSUPPORTED, f"The network {network.name} cannot be renamed"
            )
        if wanted.name != network.name:
            continue
        if wanted.uuid not in ("", network.uuid):
            raise Failure(
                failure.FAILED,
                f"network '{wanted.name}' already exists with uuid {network.uuid}",
            )
        return virtualnet.change(node, _ours(state), wanted.settings)
    made = virtualnet.add(node, wanted.name, wanted.settings, uuid=wanted.uuid)
    if not made.adopted:
        virtualnetstate.take_down(node, made.name)
        virtualnetstate.set_autostart(node, made.name, on=False)
    return made


def _ours(state: NetworkState) -> str:
    """Return the name of a network that can be changed."""
    if state.network.name == ROUTED:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            f"{ROUTED} stands for the routed network, which is always there",
        )
    return state.network.name


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
    if network.description:
        SubElement(top, "description").text = network.description
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
    asked = flags & (AUTOSTART | NO_AUTOSTART)
    return not asked or bool(flags & (AUTOSTART if state.network.autostart else NO_AUTOSTART))
