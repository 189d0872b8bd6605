"""The network as a guest's own files describe it, so that a boot inside does not undo it.

The addresses themselves are put in place from outside before init runs; what is written here says
the same in the guest's own words.  Each way of configuring a network is one module of this folder,
found by its name, with

    RANK                               lower ones are asked first
    detect(guest) -> bool              whether this guest uses it
    write(guest, network) -> None      make its files say what NETWORK says; none: take ours away

Files of ours begin with MARK and only those are replaced or removed.  An interface that the
administrator of the guest has described in a file of their own is left to them.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_address, ip_interface
from typing import NamedTuple, Protocol, cast

from pyvz.errors import GuestFileError, VZError
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.grammar_list import Address
from pyvz.model.grammar_net import NetIf
from pyvz.network.address import with_prefix
from pyvz.network.plan import netifs

MARK = "# Written by pyvz; changes here are lost. Change it on the node, with prlctl set."


class GuestAddress(NamedTuple):
    """An address and the length of its prefix."""

    ip: str
    prefix: int

    def __str__(self) -> str:
        return f"{self.ip}/{self.prefix}"

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.ip else 4


class GuestInterface(NamedTuple):
    """One interface inside.

    kind: "venet" (routed) or "veth" (bridged).  default: the families whose default route is the
    device itself, scope link ("4", "6", "46"), where no gateway is given.  mac: "" when it is not
    known yet.
    """

    name: str
    kind: str
    addresses: tuple[GuestAddress, ...] = ()
    gateway: str = ""
    gateway6: str = ""
    dhcp: bool = False
    dhcp6: bool = False
    mac: str = ""
    default: str = ""

    def of(self, version: int) -> tuple[GuestAddress, ...]:
        """Return the addresses of IP version 4 or 6."""
        return tuple(address for address in self.addresses if address.version == version)

    def routes(self) -> tuple[GuestRoute, ...]:
        """Return its default routes."""
        return tuple(
            GuestRoute(version, gateway, onlink=bool(gateway) and not self.reaches(gateway))
            for version, gateway in ((4, self.gateway), (6, self.gateway6))
            if gateway or str(version) in self.default
        )

    def reaches(self, gateway: str) -> bool:
        """Whether a gateway lies in a network of the interface (fe80::/10 always does)."""
        wanted = ip_address(gateway)
        return wanted.is_link_local or any(
            wanted in ip_interface(str(address)).network for address in self.addresses
        )


class GuestRoute(NamedTuple):
    """A default route; without gateway the device itself is the way (scope link).

    onlink: the gateway is in none of the interface's networks.
    """

    version: int
    gateway: str
    onlink: bool

    @property
    def destination(self) -> str:
        """The whole of IPv4 or IPv6, as a prefix."""
        return "0.0.0.0/0" if self.version == 4 else "::/0"


class GuestNetwork(NamedTuple):
    """Everything that a guest's files say about the network; "" and () where nothing is said."""

    interfaces: tuple[GuestInterface, ...] = ()
    nameservers: tuple[str, ...] = ()
    searchdomains: tuple[str, ...] = ()
    hostname: str = ""


NOTHING = GuestNetwork()


class GuestKind(Protocol):
    """What a module of this folder offers."""

    RANK: int
    detect: Callable[[GuestRoot], bool]
    write: Callable[[GuestRoot, GuestNetwork], None]


def from_config(
    config: Config, *, node_nameservers: tuple[str, ...] = (), mask: bool = False
) -> GuestNetwork:
    """Return what the guest shall know of its configuration; pure.

    Interfaces with configure=none are left out.  APPLY_IPONLY leaves names and resolver alone.
    node_nameservers: what NAMESERVER=inherit stands for.  mask: USE_VENET_MASK.
    """
    network = config.network
    found = [_interface(netif, mask=mask) for netif in netifs(config) if netif.configure != "none"]
    interfaces = tuple(_one_default(found))
    if network.ip_only:
        return GuestNetwork(interfaces)
    servers = network.nameservers
    return GuestNetwork(
        interfaces,
        node_nameservers if servers == ("inherit",) else servers,
        network.searchdomains,
        network.hostname or "",
    )


def write(guest: GuestRoot, network: GuestNetwork) -> tuple[str, ...]:
    """Write the interfaces into the guest by its own means; return what went wrong, in words.

    Nothing that a hostile guest does with its files keeps the container from starting, so a
    problem is told and the rest is written.  Files of ours of another kind are taken away.
    """
    found = kind_of(guest)
    problems: list[str] = []
    for name, kind in kinds():
        wanted = network if name == found else NOTHING
        try:
            kind.write(guest, wanted)
        except (OSError, VZError) as error:
            if name == found:
                problems.append(f"network of the guest ({name}): {error}")
    return tuple(problems)


def kind_of(guest: GuestRoot) -> str:
    """Return the name of the first kind that the guest uses; "" when it is none that we know."""
    for name, kind in kinds():
        try:
            if kind.detect(guest):
                return name
        except (OSError, VZError):
            continue
    return ""


def kinds() -> list[tuple[str, GuestKind]]:
    """Return (name, module) of every kind, in the order in which they are asked."""
    package = importlib.import_module(__package__ or "")
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    modules = [(name, importlib.import_module(f"{package.__name__}.{name}")) for name in names]
    kinds = [(name, cast(GuestKind, x)) for name, x in modules if hasattr(x, "detect")]
    return sorted(kinds, key=lambda found: found[1].RANK)


# What the kinds share: files that are ours


def is_ours(text: str) -> bool:
    """Whether a file's text begins with our mark."""
    return text.startswith(MARK)


def read(guest: GuestRoot, path: str) -> str:
    """Return a file's text; "" when it is not there or is not a file."""
    try:
        return guest.read_text(path)
    except (OSError, GuestFileError):
        return ""


def put(guest: GuestRoot, path: str, text: str, *, mode: int | None = None) -> None:
    """Write a file of ours, mark first, when it differs; one that is not ours stays as it is."""
    content = f"{MARK}\n{text}"
    former = read(guest, path)
    if former == content or (guest.exists(path) and not is_ours(former)):
        return
    guest.write(path, content, mode=mode, make_parents=True)


def drop(guest: GuestRoot, path: str) -> None:
    """Remove a file when it is ours."""
    if is_ours(read(guest, path)):
        guest.remove(path)


def drop_others(guest: GuestRoot, folder: str, keep: Iterable[str]) -> None:
    """Remove the files of ours in a folder, except for the names in KEEP."""
    kept = set(keep)
    for name in guest.names(folder):
        if name not in kept and "pyvz" in name:
            drop(guest, f"{folder}/{name}")


def enabled(guest: GuestRoot, unit: str) -> bool:
    """Whether systemd inside starts UNIT at boot (a link below any *.wants in etc)."""
    base = "etc/systemd/system"
    wants = [name for name in guest.names(base) if name.endswith((".wants", ".requires"))]
    return any(unit in guest.names(f"{base}/{name}") for name in wants)


def is_program(guest: GuestRoot, *paths: str) -> bool:
    """Whether one of the programs is there."""
    return any(guest.is_file(path) for path in paths)


def mentions(text: str, pattern: str, name: str) -> bool:
    """Whether a line of TEXT fits PATTERN with %s for an interface's name."""
    return re.search(pattern % re.escape(name), text, re.MULTILINE) is not None


def _interface(netif: NetIf, *, mask: bool) -> GuestInterface:
    routed = netif.type == "routed"
    given = (*netif.ip, *netif.ip6)
    addresses = tuple(_address(x, mask=mask or not routed) for x in given)
    families = {str(address.version) for address in addresses}
    return GuestInterface(
        netif.ifname,
        "venet" if routed else "veth",
        addresses,
        "" if routed else netif.gw,
        "" if routed else netif.gw6,
        dhcp=netif.dhcp and not routed,
        dhcp6=netif.dhcp6 and not routed,
        mac=netif.mac,
        default="".join(sorted(families)) if routed else "",
    )


@lru_cache(maxsize=1 << 16)
def _address(address: Address, *, mask: bool) -> GuestAddress:
    ip, _, prefix = with_prefix(address, mask=mask).partition("/")
    return GuestAddress(ip, int(prefix))


def _one_default(interfaces: list[GuestInterface]) -> Iterable[GuestInterface]:
    """Leave one default route per family: a gateway that was named, else the first interface."""
    taken = {"4" for each in interfaces if each.gateway}
    taken |= {"6" for each in interfaces if each.gateway6}
    for each in interfaces:
        keep = "".join(family for family in each.default if family not in taken)
        taken |= set(keep)
        yield each._replace(default=keep)
