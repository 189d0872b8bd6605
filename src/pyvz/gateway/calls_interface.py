"""The node's own interfaces, as they are now: looked at here, changed with the system's own tools.

Those that lead to environments are no interfaces of the node.
"""

from __future__ import annotations

from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure, hostdevicexml
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.nodexml import text_of
from pyvz.linux import hostdevices
from pyvz.linux.netlink import InterfaceAddress, Link, Netlink
from pyvz.model.task import Progress

Key = dict[str, Any]

_INACTIVE, _ACTIVE = 1, 2  # flags of the list
_GUESTS: Final = frozenset({"veth", "tun"})  # kinds of links that lead to environments
_FAMILIES: Final = (("ipv4", "."), ("ipv6", ":"))


def connect_list_all_interfaces(_call: Call, *, need_results: int, flags: int) -> Values:
    """Every interface, or those that are up, or down."""
    found = [_key(each) for each in _selected(flags)]
    return {"ifaces": found if need_results else [], "ret": len(found)}


def connect_num_of_interfaces(_call: Call) -> Values:
    """How many are up."""
    return {"num": len(_selected(_ACTIVE))}


def connect_list_interfaces(_call: Call, *, maxnames: int) -> Values:
    """Their names."""
    return {"names": [each.name for each in _selected(_ACTIVE)][: max(0, maxnames)]}


def connect_num_of_defined_interfaces(_call: Call) -> Values:
    """How many are down."""
    return {"num": len(_selected(_INACTIVE))}


def connect_list_defined_interfaces(_call: Call, *, maxnames: int) -> Values:
    """Their names."""
    return {"names": [each.name for each in _selected(_INACTIVE)][: max(0, maxnames)]}


def interface_lookup_by_name(_call: Call, *, name: str) -> Values:
    """An interface by its name."""
    return {"iface": _key(_find(name))}


def interface_lookup_by_mac_string(_call: Call, *, mac: str) -> Values:
    """The interface with that MAC address."""
    found = [each for each in _links() if each.mac.lower() == mac.lower() and not each.loopback]
    if len(found) != 1:
        how = "no interface" if not found else "more than one interface"
        raise Failure(failure.NO_INTERFACE, f"There is {how} with the MAC address '{mac}'")
    return {"iface": _key(found[0])}


def interface_is_active(_call: Call, *, iface: Key) -> Values:
    """Whether it is up."""
    return {"active": int(_find(iface["name"]).up)}


def interface_get_xml_desc(_call: Call, *, iface: Key, flags: int) -> Values:
    """What it is now: addresses, link, and the parts of a bridge."""
    _ = flags
    with Netlink() as netlink:
        links, addresses = netlink.links(), netlink.addresses()
    link = _one(links, iface["name"])
    top = _described(link)
    SubElement(top, "mtu", size=str(link.mtu))
    _addresses(top, [each for each in addresses if each.index == link.index])
    if link.kind == "bridge":
        bridge = SubElement(top, "bridge")
        for each in links:
            if each.master == link.index and each.kind not in _GUESTS:
                bridge.append(_described(each))
    return {"xml": text_of(top)}


def interface_change_begin(_call: Call, _progress: Progress, **_: object) -> None:
    """Nothing: see above."""
    raise Failure(
        failure.OPERATION_UNSUPPORTED,
        "The node's interfaces are configured with the distribution's own tools, and bridges of"
        " virtual networks with prlsrvctl net",
    )


interface_change_commit = interface_change_begin
interface_change_rollback = interface_change_begin
interface_define_xml = interface_change_begin
interface_undefine = interface_change_begin
interface_create = interface_change_begin
interface_destroy = interface_change_begin


def _described(link: Link) -> Element:
    """Return what an interface is by itself; of a bridge there is no more to say."""
    if link.kind == "bridge":
        return Element("interface", type="bridge", name=link.name)
    top = Element("interface", type="ethernet", name=link.name)
    hostdevicexml.link(top, hostdevices.interface(link.name))
    if link.mac:
        SubElement(top, "mac", address=link.mac)
    return top


def _addresses(top: Element, addresses: list[InterfaceAddress]) -> None:
    for family, mark in _FAMILIES:
        own = [each.address for each in addresses if mark in each.address]
        protocol = SubElement(top, "protocol", family=family) if own else top
        for text in own:
            address, _, prefix = text.partition("/")
            SubElement(protocol, "ip", address=address, prefix=prefix)


def _links() -> list[Link]:
    with Netlink() as netlink:
        return [each for each in netlink.links() if each.kind not in _GUESTS]


def _selected(flags: int) -> list[Link]:
    wanted = flags & (_INACTIVE | _ACTIVE) or _INACTIVE | _ACTIVE
    return [each for each in _links() if wanted & (_ACTIVE if each.up else _INACTIVE)]


def _find(name: str) -> Link:
    return _one(_links(), name)


def _one(links: list[Link], name: str) -> Link:
    for each in links:
        if each.name == name and each.kind not in _GUESTS:
            return each
    raise Failure(failure.NO_INTERFACE, f"There is no interface '{name}'")


def _key(link: Link) -> Key:
    return {"name": link.name, "mac": link.mac}
