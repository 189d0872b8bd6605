"""A network's XML as settings of a virtual network, those of `prlsrvctl net set`.

    no forward          host-only           forward mode='nat'      shared
    forward 'bridge'    bridged, with the bridge or the card (interface dev) that is named
    bridge name         the name of the bridge; ip, dhcp, range     the subnet of a family

What we cannot keep is refused by its name.  Left out, as clients add it unasked: spanning tree of
the bridge, a range of ports that is the usual one, and a DNS domain that is called like the
network.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element

from pyvz.errors import VZError
from pyvz.gateway import failure
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.model.environment import canonical_uuid
from pyvz.model.virtualnet import NetworkType, bridge_mac

Settings = list[tuple[str, str]]

_TYPES: Final = {
    "": NetworkType.HOST_ONLY, "nat": NetworkType.SHARED, "bridge": NetworkType.BRIDGED,
}  # fmt: skip
# element -> the elements that it may have; what is not here is refused.
_KNOWN: Final = {
    "network": {
        "name", "uuid", "description", "forward", "bridge", "mac", "domain", "ip",
    },
    "forward": {"interface", "nat"},
    "nat": {"port"},
    "ip": {"dhcp"},
    "dhcp": {"range"},
}  # fmt: skip
_ATTRIBUTES: Final = {
    "forward": {"mode", "dev"},
    "interface": {"dev"},
    "port": {"start", "end"},
    "bridge": {"name", "stp", "delay"},
    "domain": {"name"},
    "ip": {"address", "netmask", "prefix", "family"},
    "range": {"start", "end"},
    "network": {"connections"},
    "mac": {"address"},
}
_USUAL_PORTS: Final = ("1024", "65535")


class Wanted(NamedTuple):
    """The network that a description asks for.  uuid: "" for any."""

    name: str
    uuid: str
    settings: Settings


def read(xml: str) -> Wanted:
    """Return what a description asks for; raises Failure naming what cannot be."""
    top = parsed(xml, "description of the network")
    if top.tag != "network":
        raise Failure(failure.XML, f"A <{top.tag}> is no network")
    _check(top, "")
    name, given = _text(top, "name"), _text(top, "uuid")
    uuid = canonical_uuid(given) if given else ""
    if uuid is None:
        raise Failure(failure.XML, f"'{given}' is no UUID")
    if not name:
        raise Failure(failure.XML, "The network has no name")
    domain, mac = top.find("domain"), top.find("mac")
    if domain is not None and domain.get("name") != name:
        raise _refused("domain")
    if mac is not None and uuid and mac.get("address", "").lower() != bridge_mac(uuid):
        raise Failure(
            failure.UNSUPPORTED, "The hardware address of a bridge follows from the network's UUID"
        )
    settings = [*_connection(top), *_subnets(top)]
    return Wanted(name, uuid, [*settings, ("description", _text(top, "description"))])


def dhcp_range(xml: str) -> Settings:
    """Return the settings of a `range` alone, as net-update sends it; raises Failure."""
    element = parsed(xml, "description of the range")
    _check(element, "")
    return list(_range(element))


def _connection(top: Element) -> Iterator[tuple[str, str]]:
    """Yield the type of the network, and what it is bound to."""
    forward = top.find("forward")
    mode = "" if forward is None else forward.get("mode", "nat")
    if mode not in _TYPES:
        raise Failure(failure.UNSUPPORTED, f"A network with forward mode '{mode}' is not supported")
    yield ("type", _TYPES[mode].value)
    bridge = top.find("bridge")
    if bridge is not None and bridge.get("name"):
        yield ("bridge", bridge.get("name", ""))
    if forward is None:
        return
    card = forward.find("interface")
    name = forward.get("dev") or (card.get("dev") if card is not None else None)
    if name and mode != "bridge":
        raise _refused("forward/interface")
    if name:
        yield ("ifname", name)
    ports = forward.find("nat/port")
    if ports is not None and (ports.get("start"), ports.get("end")) != _USUAL_PORTS:
        raise _refused("forward/nat/port")


def _subnets(top: Element) -> Iterator[tuple[str, str]]:
    """Yield the addresses of both families; one that is not there has none."""
    found: dict[int, Element] = {}
    for element in top.findall("ip"):
        version = _version(element.get("address", ""))
        if version in found:
            raise Failure(failure.UNSUPPORTED, f"A network has one IPv{version} subnet")
        found[version] = element
    bridged = (forward := top.find("forward")) is not None and forward.get("mode") == "bridge"
    for version in (4, 6):
        six = "6" if version == 6 else ""
        # A host-only or shared network without any address is given one, as prlsrvctl does.
        if version not in found:
            if not bridged and (version == 6 or found):
                yield (f"ip{six}", "")
            continue
        element = found[version]
        yield (f"ip{six}", _address(element))
        scope = element.find("dhcp/range")
        yield (f"dhcp{six}-server", "on" if scope is not None else "off")
        if scope is not None:
            yield from _range(scope)


def _range(element: Element) -> Iterator[tuple[str, str]]:
    start, end = element.get("start", ""), element.get("end", "")
    six = "6" if _version(start) == 6 else ""
    yield (f"ip{six}-scope-start", start)
    yield (f"ip{six}-scope-end", end)


def _address(element: Element) -> str:
    prefix = element.get("prefix") or element.get("netmask") or ""
    try:
        return str(ip_interface(f"{element.get('address')}/{prefix}" if prefix else "?"))
    except ValueError as error:
        raise Failure(failure.XML, "An <ip> needs an address and its netmask or prefix") from error


def _version(address: str) -> int:
    try:
        return ip_address(address).version
    except ValueError as error:
        raise Failure(failure.XML, f"'{address[:80]}' is no address") from error


def _check(element: Element, place: str) -> None:
    """Raise Failure for an element or attribute that we do not know, by its place."""
    for name in element.attrib:
        if name not in _ATTRIBUTES.get(element.tag, ()):
            raise _refused(f"{place}{element.tag}/@{name}")
    here = "" if element.tag == "network" else f"{place}{element.tag}/"
    for child in element:
        if child.tag not in _KNOWN.get(element.tag, ()):
            raise _refused(f"{here}{child.tag}")
        _check(child, here)


def _refused(place: str) -> VZError:
    return Failure(failure.UNSUPPORTED, f"The element {place} of a network is not supported")


def _text(top: Element, tag: str) -> str:
    return (top.findtext(tag) or "").strip()
