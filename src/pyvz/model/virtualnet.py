"""Virtual networks as values: what one is, which one is possible, and how it is written.

bridged    a bridge with a card of the node in it: containers are on the node's own network
host-only  a bridge with an address of the node: containers reach the node and each other
shared     a host-only one whose containers reach the outside by the node's address (NAT)

A bridged network may be one VLAN of its card (vlan), the two others may span several nodes (vxlan).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import NamedTuple

from pyvz.errors import BadValue, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_INTERFACE = re.compile(r"[^/\s:]{1,15}")  # dev_valid_name, net/core/dev.c: 15 bytes
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MAX_VNI = (1 << 24) - 1

AnyInterface = IPv4Interface | IPv6Interface


class NetworkType(StrEnum):
    """The kinds of virtual networks."""

    BRIDGED = "bridged"
    HOST_ONLY = "host-only"
    SHARED = "shared"


class Subnet(NamedTuple):
    """The addresses of one family.  address: the node's, "10.1.2.1/24", or "": there are none.

    dhcp: hand out `first` to `last`.  server: the DHCP server's own address, "" for the node's.
    """

    address: str = ""
    dhcp: bool = False
    server: str = ""
    first: str = ""
    last: str = ""

    @property
    def interface(self) -> AnyInterface | None:
        """The node's address with its net."""
        return ip_interface(self.address) if self.address else None


class PortForward(NamedTuple):
    """A port of the node that leads to a container.  target: an address, or a container's name."""

    protocol: str  # "tcp" or "udp"
    name: str
    target: str
    port: int
    target_port: int

    @property
    def text(self) -> str:
        """As the command line writes it: name,target,port,target_port."""
        return f"{self.name},{self.target},{self.port},{self.target_port}"


class VirtualNetwork(NamedTuple):
    """One virtual network.

    uuid: its identity, from which the bridge's MAC comes.  bridge: name of the link; "" while
    nobody has chosen one.  adopted: the bridge is not ours, only used.  interface, mac: the card
    that it is bound to, by name or by hardware address.  force: the card's addresses may move to
    the bridge.  vlan: tag, 0 none.  vxlan: identifier (VNI), 0 none; remotes: the other nodes.
    autostart: it comes up with vzd, not only when it is used.
    """

    name: str
    uuid: str
    type: NetworkType
    bridge: str = ""
    adopted: bool = False
    interface: str = ""
    mac: str = ""
    force: bool = False
    description: str = ""
    ipv4: Subnet = Subnet()
    ipv6: Subnet = Subnet()
    vlan: int = 0
    vxlan: int = 0
    remotes: tuple[str, ...] = ()
    forwards: tuple[PortForward, ...] = ()
    autostart: bool = True

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """Those that have addresses."""
        return tuple(each for each in (self.ipv4, self.ipv6) if each.address)

    @property
    def dhcp(self) -> bool:
        """Whether it needs a DHCP server."""
        return any(each.dhcp for each in self.subnets)


def check_name(name: str) -> str:
    """Return NAME when it can be that of a network; raises BadValue."""
    if not _NAME.fullmatch(name):
        raise BadValue(
            f"'{name}' cannot be the name of a network",
            hint="Up to 64 letters, digits, dots, dashes and underscores.",
        )
    return name


def check_interface(name: str) -> str:
    """Return NAME when it can be that of a network interface; raises BadValue."""
    if not _INTERFACE.fullmatch(name) or name in {".", ".."}:
        raise BadValue(
            f"'{name}' cannot be the name of a network interface",
            hint="Interfaces have names of at most 15 characters, without spaces and slashes.",
        )
    return name


def bridge_mac(uuid: str) -> str:
    """Return the bridge's hardware address: locally administered, always the same.

    A bridge without one of its own takes the lowest of its ports, so that a container that comes
    or goes would change the node's address (br_stp_recalculate_bridge_id, net/bridge/br_stp_if.c).
    """
    digits = hashlib.sha256(uuid.encode()).hexdigest()
    return "02:" + ":".join(digits[i : i + 2] for i in range(0, 10, 2))


def configured(network: VirtualNetwork, settings: Iterable[tuple[str, str]]) -> VirtualNetwork:
    """Return the network with SETTINGS, pairs of an option's name and its text, in their order.

    Raises BadValue, UsageError; what is possible altogether says check().
    """
    for name, text in settings:
        change = _OPTIONS.get(name)
        if change is None:
            raise UsageError(f"A network has no setting '{name}'")
        network = change(network, name, text)
    return network


def check(network: VirtualNetwork, *, ranges: bool = False) -> VirtualNetwork:
    """Return the network with every default filled in; raises BadValue, UsageError.

    ranges: those that could not be given out are refused also while nothing is.
    """
    check_name(network.name)
    _check_type(network)
    ipv4 = _filled(network.ipv4, network.type, 4)
    ipv6 = _filled(network.ipv6, network.type, 6)
    network = network._replace(ipv4=ipv4, ipv6=ipv6)
    for subnet in network.subnets if ranges else ():
        _check_range(subnet)
    _check_forwards(network)
    return network


def overlapping(network: VirtualNetwork, others: Mapping[str, str]) -> str:
    """Return a text that says with which of OTHERS (net -> whose it is) it overlaps, or ""."""
    for subnet in network.subnets:
        own = ip_interface(subnet.address).network
        for text, owner in others.items():
            other = ip_interface(text).network
            if own.version == other.version and own.overlaps(other):
                return f"{own} overlaps {other} of {owner}"
    return ""


def _check_type(network: VirtualNetwork) -> None:
    if network.type is NetworkType.BRIDGED:
        if not network.interface and not network.mac and not network.bridge:
            raise UsageError(
                "For a bridged Virtual Network, you need to specify either the --ifname or --mac "
                "option."
            )
        if network.subnets or network.dhcp:
            raise UsageError(
                "A bridged network has the addresses of the network that it is bound to",
                hint="--ip and --dhcp-server are for host-only and shared networks.",
            )
        if network.vxlan:
            raise UsageError("--vxlan is for host-only and shared networks, --vlan for bridged")
        return
    if network.vlan:
        raise UsageError("--vlan is for bridged networks")
    if network.force or (network.interface and not network.vxlan) or network.mac:
        raise UsageError(
            "The --ifname option should be specified for bridged virtual networks only"
        )
    if network.remotes and not network.vxlan:
        raise UsageError("--remote is for networks with --vxlan")


def _check_forwards(network: VirtualNetwork) -> None:
    if network.forwards and network.type is not NetworkType.SHARED:
        raise UsageError("Ports can be forwarded to shared networks only")
    seen: set[tuple[str, int]] = set()
    for each in network.forwards:
        if (each.protocol, each.port) in seen:
            raise BadValue(f"The {each.protocol} port {each.port} is forwarded twice")
        seen.add((each.protocol, each.port))


def _filled(subnet: Subnet, type_: NetworkType, version: int) -> Subnet:
    """Return SUBNET with the defaults of its DHCP server, checked."""
    if not subnet.address:
        if subnet != Subnet():
            raise UsageError(
                "A DHCP server needs an address of the node in the network",
                hint="Give " + ("--ip." if version == 4 else "--ip6."),
            )
        return subnet
    own = _own_address(subnet.address)
    if not subnet.dhcp or type_ is NetworkType.BRIDGED:
        return subnet
    first, last = _scope(own)
    filled = subnet._replace(
        server=subnet.server or str(own.ip),
        first=subnet.first or first,
        last=subnet.last or last,
    )
    _check_range(filled)
    return filled


def _check_range(subnet: Subnet) -> None:
    """Raise BadValue for what is said of DHCP and cannot be in the network."""
    own = ip_interface(subnet.address)
    for address in filter(None, (subnet.server, subnet.first, subnet.last)):
        ip = ip_address(address)
        edges = {own.network.network_address}
        if ip.version == 4:
            edges.add(own.network.broadcast_address)
        if ip not in own.network or ip in edges:
            raise BadValue(f"{address} is not an address of the network {own.network}")
    first, last = (int(ip_address(text)) if text else 0 for text in (subnet.first, subnet.last))
    if last and first > last:
        raise BadValue(f"The range {subnet.first} to {subnet.last} is empty")


def _own_address(text: str) -> AnyInterface:
    own = ip_interface(text)
    longest = 30 if own.version == 4 else 126
    if own.network.prefixlen > longest:
        raise BadValue(f"{text}: the network has no room for containers")
    edges = {own.network.network_address}
    if own.version == 4:
        edges.add(own.network.broadcast_address)
    if own.ip in edges or own.ip.is_multicast or own.ip.is_loopback or own.ip.is_link_local:
        raise BadValue(f"{text} cannot be the address of the node in a network")
    return own


def _scope(own: AnyInterface) -> tuple[str, str]:
    """Return the range that is handed out when nobody says: the larger side of the node's own."""
    begin = int(own.network.network_address) + 1
    end = int(own.network.broadcast_address) - (1 if own.version == 4 else 0)
    end = min(end, begin + 0xFFFF)
    mine = int(own.ip)
    if begin <= mine <= end:
        begin, end = (mine + 1, end) if end - mine >= mine - begin else (begin, mine - 1)
    kind = type(own.ip)
    return str(kind(begin)), str(kind(end))


# -- options ------------------------------------------------------------------------------------


def _address(text: str, version: int) -> str:
    try:
        ip = ip_address(text)
    except ValueError:
        ip = None
    if ip is None or ip.version != version:
        raise BadValue(f"'{text}' is not an IPv{version} address")
    return str(ip)


def _with_mask(text: str, version: int) -> str:
    if not text:
        return ""
    if "/" not in text:
        text += "/24" if version == 4 else "/64"
    try:
        own = ip_interface(text)
    except ValueError:
        own = None
    if own is None or own.version != version:
        raise BadValue(f"'{text}' is not an IPv{version} address with a mask")
    return str(own)


def _on_off(name: str, text: str) -> bool:
    if text in {"on", "yes"}:
        return True
    if text in {"off", "no"}:
        return False
    raise BadValue(f"An incorrect value for --{name} is specified: {text}")


def _number(name: str, text: str, last: int) -> int:
    if text in {"", "off", "none"}:
        return 0
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= last:
        raise BadValue(f"An incorrect value for --{name} is specified: {text}")
    return int(text)


def _type(network: VirtualNetwork, _: str, text: str) -> VirtualNetwork:
    try:
        wanted = NetworkType(text)
    except ValueError:
        raise UsageError(f"An unknown Virtual Network type: {text}") from None
    return network._replace(type=wanted)


def _description(network: VirtualNetwork, _: str, text: str) -> VirtualNetwork:
    if any(ord(each) < 32 for each in text):
        raise BadValue("A description is one line")
    return network._replace(description=text)


def _ifname(network: VirtualNetwork, _: str, text: str) -> VirtualNetwork:
    return network._replace(interface=check_interface(text), mac="")


def _mac(network: VirtualNetwork, _: str, text: str) -> VirtualNetwork:
    digits = text.lower().replace(":", "").replace("-", "")
    mac = ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
    if not _MAC.fullmatch(mac):
        raise BadValue(f"'{text}' is not a hardware address")
    return network._replace(mac=mac, interface="")


def _bridge(network: VirtualNetwork, _: str, text: str) -> VirtualNetwork:
    return network._replace(bridge=check_interface(text))


def _force(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    return network._replace(force=_on_off(name, text))


def _ip(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    version = 6 if name.startswith("ip6") else 4
    old = network.ipv6 if version == 6 else network.ipv4
    address = _with_mask(text, version)
    if not address:
        return _with(network, version, Subnet())
    if old.address and ip_interface(old.address).network != ip_interface(address).network:
        old = Subnet(dhcp=old.dhcp)  # the range of another net says nothing about this one
    return _with(network, version, old._replace(address=address))


def _dhcp(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    version = 6 if "6" in name else 4
    old = network.ipv6 if version == 6 else network.ipv4
    if name.endswith("-server"):
        return _with(network, version, old._replace(dhcp=_on_off(name, text)))
    address = _address(text, version)
    if name.startswith("dhcp"):
        changed = old._replace(server=address)
    elif name.endswith("-start"):
        changed = old._replace(first=address)
    else:
        changed = old._replace(last=address)
    return _with(network, version, changed)


def _with(network: VirtualNetwork, version: int, subnet: Subnet) -> VirtualNetwork:
    return network._replace(ipv6=subnet) if version == 6 else network._replace(ipv4=subnet)


def _vlan(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    return network._replace(vlan=_number(name, text, 4094))


def _vxlan(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    return network._replace(vxlan=_number(name, text, _MAX_VNI))


def _remote(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    try:
        remote = str(ip_address(text))
    except ValueError:
        raise BadValue(f"'{text}' is not the address of a node") from None
    others = tuple(each for each in network.remotes if each != remote)
    return network._replace(remotes=others if name.endswith("-del") else (*others, remote))


def _forward(network: VirtualNetwork, name: str, text: str) -> VirtualNetwork:
    _, protocol, action = name.split("-")
    mine = [each for each in network.forwards if each.protocol == protocol]
    named = [each for each in mine if each.name == text]
    if action == "del":
        if not named:
            raise BadValue(f"There is no {protocol} rule '{text}'")
        left = tuple(each for each in network.forwards if each not in named)
        return network._replace(forwards=left)
    made = parse_forward(protocol, text)
    if any(each.name == made.name for each in mine):
        raise BadValue(f"The rule with '{made.name}' name already exists!")
    return network._replace(forwards=(*network.forwards, made))


def parse_forward(protocol: str, text: str) -> PortForward:
    """Return the rule that TEXT (name,target,port,target_port) means; raises BadValue."""
    words = [word.strip() for word in text.split(",")]
    ports = [int(word) for word in words[2:] if word.isascii() and word.isdigit()]
    right = len(words) == 4 and len(ports) == 2 and all(0 < port < 65536 for port in ports)
    if not right or not _NAME.fullmatch(words[0]) or not words[1] or " " in words[1]:
        raise BadValue(
            f"An incorrect value for --nat-{protocol}-add is specified: {text}",
            hint="name,ADDRESS or container,port of the node,port of the container",
        )
    return PortForward(protocol, words[0], words[1], *ports)


_OPTIONS = {
    "type": _type,
    "description": _description,
    "ifname": _ifname,
    "mac": _mac,
    "bridge": _bridge,
    "force": _force,
    "ip": _ip,
    "ip6": _ip,
    **dict.fromkeys(("dhcp-server", "dhcp6-server", "dhcp-ip", "dhcp-ip6"), _dhcp),
    **dict.fromkeys(("ip-scope-start", "ip-scope-end", "ip6-scope-start", "ip6-scope-end"), _dhcp),
    "vlan": _vlan,
    "vxlan": _vxlan,
    "remote": _remote,
    "remote-del": _remote,
    **dict.fromkeys(("nat-tcp-add", "nat-tcp-del", "nat-udp-add", "nat-udp-del"), _forward),
}
SETTINGS = frozenset(_OPTIONS)
