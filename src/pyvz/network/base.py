"""The values of a container's network: what is to be there, before anything is done.

Pure: nothing here knows how a link is made.  Addresses are texts as the kernel takes them, so a
plan is JSON as it is.  `plan.py` makes a NetworkPlan, `links.py` and `antispoof.py` carry it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from pyvz.errors import NetworkError
from pyvz.model.grammar_net import NetIf

ROUTED = "venet0"  # the name inside of the interface for IP_ADDRESS
MAC_PREFIX = "c4:37:72"  # OUI of containers' cards (libvzctl); the node's end begins with fe
MACHINE_PREFIX = "00:1c:42"  # of virtual machines' cards
ROUTED_PREFIX, TAP_PREFIX = "venet", "vme"  # of names of the node's ends
GATEWAY6 = "fe80::1"  # the node, for a virtual machine with a routed card


class Filter(NamedTuple):
    """What the container may send by an interface.

    mac: only from its own hardware address.  addresses: only from these (bare, both families);
    None: from any.  broadcasts: so many packets per second to everybody (broadcast, multicast);
    0: any number.
    """

    mac: bool = True
    addresses: tuple[str, ...] | None = None
    broadcasts: int = 0


class Interface(NamedTuple):
    """One interface of a container.

    kind: "routed" or "bridged".  name: inside.  host_name: the node's end.  mac, host_mac.
    addresses: inside, with prefix.  default: which families have their default route here
    ("4", "6", "46").  gateways: by address; a family in `default` without one is on the link.
    routes: bare addresses for which the node has a route here.  sources: preferred source
    addresses of those routes, by family.  bridge: that the node's end joins; "": none.
    connected: else the link is down.  tap: the other end is not in a namespace but a descriptor,
    for a virtual machine; then nothing inside is done by us.
    """

    kind: str
    name: str
    host_name: str
    mac: str
    host_mac: str
    addresses: tuple[str, ...] = ()
    default: str = ""
    gateways: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    bridge: str = ""
    connected: bool = True
    filter: Filter = Filter()
    tap: bool = False


class Proxy(NamedTuple):
    """An address for which the node answers ARP or NDP on one of its own interfaces."""

    address: str
    device: str


class NetworkPlan(NamedTuple):
    """Everything that is put down on the node and inside for one container.

    devices: interfaces of the node that are moved inside (NETDEV).
    torn: a record of what *may* be in place: somebody is, or was, on the way from one plan to
    another, and everything of both is here.
    """

    uuid: str
    interfaces: tuple[Interface, ...] = ()
    proxies: tuple[Proxy, ...] = ()
    torn: bool = False
    devices: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is to be put down."""
        return not self.interfaces and not self.devices

    @property
    def routed(self) -> tuple[str, ...]:
        """Every bare address that is routed to the container."""
        return tuple(address for each in self.interfaces for address in each.routes)

    def interface(self, name: str) -> Interface | None:
        """Return the interface of that name inside."""
        return next((each for each in self.interfaces if each.name == name), None)

    def to_json(self) -> str:
        """As it is kept in the node's run directory."""
        return json.dumps(
            {
                "uuid": self.uuid,
                "interfaces": [
                    each._asdict() | {"filter": each.filter._asdict()} for each in self.interfaces
                ],
                "proxies": self.proxies,
                "torn": self.torn,
                "devices": self.devices,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> NetworkPlan:
        """Read what to_json has written; ValueError, KeyError or TypeError for anything else."""
        return _parsed(text)


class Uplink(NamedTuple):
    """An interface of the node by which others reach it; networks: "10.1.2.0/24", ..."""

    name: str
    networks: tuple[str, ...]


class NodeFacts(NamedTuple):
    """What the plan must know of the node.

    addresses: its own, bare.  uplinks: see Uplink.  bridges: name of network -> bridge.
    sources: preferred source addresses for routes to containers, at most one per family.
    mask: keep masks of routed addresses inside (USE_VENET_MASK).  ipv6: IPV6 of vz.conf.
    broadcasts: packets per second that a card may send to everybody (BROADCAST_LIMIT).
    """

    addresses: frozenset[str] = frozenset()
    uplinks: tuple[Uplink, ...] = ()
    bridges: Mapping[str, str] = {}
    sources: tuple[str, ...] = ()
    mask: bool = True
    ipv6: bool = True
    broadcasts: int = 0


class InterfaceKind(Protocol):
    """A module of this package that makes one kind of interface; its name is the kind."""

    def interface(self, uuid: str, netif: NetIf, facts: NodeFacts) -> Interface:
        """Return the plan of one interface; NetworkError when the node cannot have it."""


def host_name_of(mac: str) -> str:
    """Return the name of the node's end: veth and the last eight digits of the MAC (libvzctl)."""
    return "veth" + mac.replace(":", "")[-8:]


def tap_name_of(mac: str) -> str:
    """Return the name of the node's end of a virtual machine's card, as the original has it."""
    return TAP_PREFIX + mac.replace(":", "")[-8:]


def routed_name_of(mac: str) -> str:
    """Return the name of the node's end of a routed card that has a MAC of its own."""
    return ROUTED_PREFIX + mac.replace(":", "")[-8:]


def host_mac_of(mac: str) -> str:
    """Return the node's end's MAC: the container's with fe in front.

    A bridge takes the lowest address of its ports, so ours, the highest, never changes it.
    """
    return "fe" + mac[2:]


def routed_mac(uuid: str) -> str:
    """Return the MAC of venet0, which is never seen by anybody but the node."""
    digest = hashlib.sha256(uuid.encode()).hexdigest()
    return f"{MAC_PREFIX}:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def routed_host_name(uuid: str) -> str:
    """Return the name of venet0's end on the node.

    Administrators' rules may speak of all of them at once: iptables -i venet+, nft "venet*".
    """
    return ROUTED_PREFIX + hashlib.sha256(uuid.encode()).hexdigest()[:8]


def card_mac(uuid: str, name: str, taken: Container[str] = (), prefix: str = MAC_PREFIX) -> str:
    """Return the MAC of a container's card NAME that nobody gave it; taken: used by others."""
    for attempt in range(1 << 16):
        digest = hashlib.sha256(f"{uuid} {name} {attempt}".encode()).hexdigest()
        mac = f"{prefix}:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
        if mac not in taken:
            return mac
    raise NetworkError("There is no free hardware address")


@lru_cache(maxsize=4)  # `set` reads its container's record more than once
def _parsed(text: str) -> NetworkPlan:
    data = json.loads(text)
    interfaces = tuple(_interface(each) for each in data["interfaces"])
    proxies = tuple(Proxy(*each) for each in data["proxies"])
    devices = tuple(data.get("devices", ()))
    torn = bool(data.get("torn", False))
    return NetworkPlan(data["uuid"], interfaces, proxies, torn, devices)


def _interface(data: dict[str, Any]) -> Interface:
    made: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    given = data["filter"]
    addresses = None if given["addresses"] is None else tuple(given["addresses"])
    made["filter"] = Filter(given["mac"], addresses, given.get("broadcasts", 0))
    return Interface(**made)
