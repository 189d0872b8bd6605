"""Links, addresses, routes and proxy entries: the only user of pyroute2 (rtnetlink(7)).

pyroute2 takes 0.2 s to import, so that happens with the first Netlink, never at import time; only
vzd may use this module.  A Netlink speaks to the network namespace in which its socket was made:
that of the process, or the one of a socket that somebody hands over (container/netns.py); nobody
here enters a namespace.  One thread at a time per Netlink.

Everything that removes is idempotent; everything that adds an address, a route or a proxy entry
replaces an equal one.  What the kernel refuses is NetworkError with the kernel's words.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from types import TracebackType
from typing import Any, NamedTuple

from pyvz.errors import NetworkError

IFF_UP = 1
IFF_NOARP = 0x80
SCOPE_LINK = 253
SCOPE_HOST = 254
TABLE_MAIN = 254
_NTF_PROXY = 8
_RTNH_F_ONLINK = 4
_IFA_F_PERMANENT = 0x80
_PROTO_KERNEL, _PROTO_RA = 2, 9  # RTPROTO_*: of an address; of a router's advertisement
_EVERYBODY = "00:00:00:00:00:00"  # the entry of a VXLAN for frames without a known destination
_HTB = 0x10000  # 1:
_TC_ROOT = 0xFFFFFFFF
_LARGEST_PACKET = 65536  # a segmented one of GSO
_SCOPE_NOWHERE = 255  # in a request to delete: whatever its scope is (fib_table_delete)
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Link:
    """An interface.  kind: "veth", "bridge", "vlan", ... or "" (a card).  master: index or 0."""

    index: int
    name: str
    kind: str
    mac: str
    up: bool
    master: int
    mtu: int
    alias: str
    loopback: bool


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface, "10.1.2.3/24"; scope as the kernel has it (0: universe)."""

    index: int
    address: str
    scope: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route.  to: "10.1.2.3/32" or "default".  via: gateway or ""; source: preferred one.

    metric: 0 is the kernel's default of the family.
    """

    to: str
    index: int
    family: int = socket.AF_INET
    via: str = ""
    source: str = ""
    scope: int | None = None
    table: int = TABLE_MAIN
    onlink: bool = False
    metric: int = 0


class VethEnd(NamedTuple):
    """One end of a veth pair.  namespace: descriptor of the one it is made in; None: ours."""

    name: str
    mac: str = ""
    namespace: int | None = None
    arp: bool = True


class HtbRate(NamedTuple):
    """A class of HTB: minor numbers of it and of its parent (0: the root), kbit/s, bytes."""

    minor: int
    parent: int
    rate: int
    ceil: int
    minimum: int = 0


class Netlink:
    """A connection to the kernel's rtnetlink; a context manager."""

    def __init__(self, sock: int | None = None) -> None:
        """Open a socket here, or use a copy of SOCK, a route netlink socket made elsewhere."""
        from pyroute2 import IPRoute  # noqa: PLC0415  # 0.2 s
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        self._error = NetlinkError
        self._route = IPRoute() if sock is None else IPRoute(fileno=os.dup(sock))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._route.close()

    # -- links ----------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        """Return every link."""
        with self._saying("list the interfaces"):
            return [_link(message) for message in self._route.get_links()]

    def link(self, name: str) -> Link | None:
        """Return the link of that name."""
        with self._saying(f"look for {name}"):
            try:
                return _link(self._route.link("get", ifname=name)[0])
            except self._error as error:
                if error.code in _GONE:
                    return None
                raise

    def need(self, name: str) -> Link:
        """Return the link of that name; NetworkError when there is none."""
        found = self.link(name)
        if found is None:
            raise NetworkError(f"There is no network interface {name}")
        return found

    def add_veth(self, end: VethEnd, peer: VethEnd) -> None:
        """Make a pair, both ends down; NetworkError when a name is taken."""
        with self._saying(f"make the interface {end.name}"):
            self._route.link("add", kind="veth", **_end(end), peer=_end(peer))

    def add_link(self, kind: str, name: str, **attributes: Any) -> None:  # noqa: ANN401
        """Make another link: "bridge", "vlan", "vxlan", "dummy", ...; attributes of pyroute2."""
        with self._saying(f"make the interface {name}"):
            self._route.link("add", kind=kind, ifname=name, **attributes)

    def set_link(self, index: int, **attributes: Any) -> None:  # noqa: ANN401
        """Change a link: state="up"|"down", master=index|0, address=mac, ifname, mtu, arp, ..."""
        with self._saying(f"change the interface {attributes.get('ifname', index)}"):
            self._route.link("set", index=index, **attributes)

    def set_alias(self, index: int, text: str) -> None:
        """Give a link its alias (ifalias), by which we know what is ours."""
        with self._saying("name an interface"):
            self._route.link("set", index=index, IFLA_IFALIAS=text)

    def delete_link(self, index: int) -> bool:
        """Remove a link (and its peer); False when it was gone already."""
        return self._removed("remove an interface", lambda: self._route.link("del", index=index))

    # -- addresses ------------------------------------------------------------------------------

    def addresses(self) -> list[InterfaceAddress]:
        """Return every address of every link."""
        with self._saying("list the addresses"):
            return [_address(message) for message in self._route.get_addr()]

    def add_address(self, index: int, address: str, **attributes: Any) -> None:  # noqa: ANN401
        """Give a link "10.1.2.3/24"."""
        parsed = ip_interface(address)
        if parsed.version == 4 and parsed.network.prefixlen < 31:
            attributes.setdefault("broadcast", str(parsed.network.broadcast_address))
        with self._saying(f"give an interface the address {address}"):
            self._route.addr("replace", index=index, **_on(address), **attributes)

    def delete_address(self, index: int, address: str) -> bool:
        """Take an address away; False when it was not there."""
        return self._removed(
            f"take the address {address} away",
            lambda: self._route.addr("del", index=index, **_on(address)),
        )

    # -- routes ---------------------------------------------------------------------------------

    def replace_route(self, route: Route) -> None:
        """Set a route, in the place of another one to the same destination."""
        with self._saying(f"set the route to {route.to}"):
            self._route.route("replace", **_route(route))

    def delete_route(self, route: Route) -> bool:
        """Remove a route; False when it was not there."""
        return self._removed(
            f"remove the route to {route.to}",
            lambda: self._route.route("del", **({"scope": _SCOPE_NOWHERE} | _route(route))),
        )

    def routes(self, index: int) -> list[Route]:
        """Return the routes of the main table by a link that somebody has set.

        Those that come with an address, or from a router, are left out.
        """
        with self._saying("list the routes"):
            found = self._route.route("dump", oif=index, table=TABLE_MAIN)
            return [
                _given_route(message, index)
                for message in found
                if message["proto"] not in {_PROTO_KERNEL, _PROTO_RA}
                and message.get("oif") == index
                and message.get("table") == TABLE_MAIN
            ]

    def leased(self, index: int) -> list[str]:
        """Return the IPv4 addresses of a link that have a lifetime: a DHCP client keeps them."""
        with self._saying("list the addresses"):
            return [
                _address(message).address
                for message in self._route.get_addr(family=socket.AF_INET, index=index)
                if not int(message.get("IFA_FLAGS") or message["flags"]) & _IFA_F_PERMANENT
            ]

    def set_hairpin(self, index: int, *, on: bool) -> None:
        """Let a bridge send frames back by the port by which they came, or no more."""
        with self._saying("change a port of a bridge"):
            self._route.brport("set", index=index, mode=int(on))

    def floods(self, index: int) -> list[str]:
        """Return the nodes to which a VXLAN sends frames whose place it does not know."""
        with self._saying("list the nodes of a VXLAN"):
            return [
                str(message.get("dst"))
                for message in self._route.fdb("dump", ifindex=index)
                if message.get("lladdr") == _EVERYBODY and message["ifindex"] == index
            ]

    def set_flood(self, index: int, remote: str, *, on: bool) -> None:
        """Begin or cease to send such frames to REMOTE (`bridge fdb append`)."""
        with self._saying(f"connect a VXLAN with {remote}"):
            action = "append" if on else "del"
            self._route.fdb(action, ifindex=index, lladdr=_EVERYBODY, dst=remote)

    def routes_to(self, address: str) -> list[int]:
        """Return the indexes of the links on which there is a route to exactly this address."""
        family = _family(address)
        with self._saying(f"look for routes to {address}"):
            length = ip_address(address).max_prefixlen
            found = self._route.route("dump", family=family, dst=address, dst_len=length)
            return [index for each in found if (index := each.get("oif"))]

    def route_link(self, address: str) -> int:
        """Return the index of the link by which a packet to ADDRESS would leave; 0: none."""
        with self._saying(f"ask for the route to {address}"):
            try:
                found = self._route.route("get", dst=address)
            except self._error as error:
                if error.code in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES}:
                    return 0
                raise
            return int(next(iter(found)).get("oif") or 0)

    # -- proxy ARP and NDP ----------------------------------------------------------------------

    def add_proxy(self, index: int, address: str) -> None:
        """Answer ARP (NDP) for ADDRESS on a link (`ip neigh add proxy`)."""
        with self._saying(f"answer for {address}"):
            self._route.neigh("replace", state=0, **_proxy(index, address))

    def delete_proxy(self, index: int, address: str) -> bool:
        """Answer no longer; False when we did not."""
        return self._removed(
            f"stop answering for {address}",
            lambda: self._route.neigh("del", **_proxy(index, address)),
        )

    # -- shaping --------------------------------------------------------------------------------

    def add_htb(self, index: int) -> None:
        """Make 1: of the kind HTB a link's root, if it is not there; what has no class passes."""
        with self._saying("shape an interface"):
            if not self._has_htb(index):
                self._route.tc("replace", "htb", index, handle=_HTB, default=0)

    def delete_htb(self, index: int) -> bool:
        """Take the HTB that is a link's root away, with its classes; False when there is none."""
        with self._saying("stop shaping an interface"):
            if not self._has_htb(index):
                return False
            self._route.tc("del", index=index, handle=_HTB, parent=_TC_ROOT)
            return True

    def htb_classes(self, index: int) -> dict[int, int]:
        """Return the minor number of each class of a link's HTB, and that of its parent (0: root).

        A link without HTB has none.
        """
        with self._saying("list classes of traffic"):
            found = [x for x in self._route.get_classes(index=index) if x.get("kind") == "htb"]
        return {
            x["handle"] & 0xFFFF: 0 if x["parent"] == _TC_ROOT else x["parent"] & 0xFFFF
            for x in found
        }

    def set_htb_class(self, index: int, made: HtbRate) -> None:
        """Make a class of a link's HTB, or change its rates."""
        # Buckets for 4 ms, as timers of a busy machine come late, and for a whole GSO packet.
        burst = {
            name: max(_LARGEST_PACKET, kbits * 1000 // 8 // 250)
            for name, kbits in (("burst", made.rate), ("cburst", made.ceil))
        }
        with self._saying("make a class of traffic"):
            self._route.tc(
                "replace-class", "htb", index, handle=_HTB | made.minor,
                parent=_HTB | made.parent, rate=f"{made.rate}kbit", ceil=f"{made.ceil}kbit",
                quantum=_LARGEST_PACKET, mpu=made.minimum, **burst,
            )  # fmt: skip

    def delete_htb_class(self, index: int, minor: int) -> bool:
        """Take a class without children away; False when it is not there."""
        return self._removed(
            "remove a class of traffic",
            lambda: self._route.tc("del-class", index=index, handle=_HTB | minor),
        )

    def _has_htb(self, index: int) -> bool:
        return any(
            x["handle"] == _HTB and x.get("kind") == "htb"
            for x in self._route.get_qdiscs(index=index)
        )

    # -------------------------------------------------------------------------------------------

    def _removed(self, what: str, request: Any) -> bool:  # noqa: ANN401
        with self._saying(what):
            try:
                request()
            except self._error as error:
                if error.code in _GONE:
                    return False
                raise
            return True

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise NetworkError(f"Cannot {what}: {os.strerror(error.code)}") from error
        except OSError as error:
            raise NetworkError(f"Cannot {what}: {error.strerror}") from error


def set_sysctl(name: str, value: str, *, optional: bool = False) -> None:
    """Write a network parameter: set_sysctl("net/ipv4/conf/veth0/forwarding", "1").

    In the namespace of this process.  optional: a kernel without it is fine.  NetworkError.
    """
    try:
        fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        if not optional:
            raise NetworkError(f"The kernel has no parameter {name}") from error
    except OSError as error:
        raise NetworkError(f"Cannot set {name} to {value}: {error.strerror}") from error


def sysctl(name: str) -> str:
    """Return a network parameter; empty when the kernel does not have it."""
    with suppress(OSError):
        fd = os.open(f"/proc/sys/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 256).decode().strip()
        finally:
            os.close(fd)
    return ""


def _end(end: VethEnd) -> dict[str, Any]:
    made: dict[str, Any] = {"ifname": end.name}
    if end.mac:
        made["address"] = end.mac
    if end.namespace is not None:
        made["net_ns_fd"] = end.namespace
    return made


def _on(address: str) -> dict[str, Any]:
    parsed = ip_interface(address)
    return {
        "family": _family(str(parsed.ip)),
        "address": str(parsed.ip),
        "prefixlen": parsed.network.prefixlen,
    }


def _family(address: str) -> int:
    return socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6


def _proxy(index: int, address: str) -> dict[str, Any]:
    return {
        "family": _family(address),
        "ifindex": index,
        "dst": address,
        "flags": _NTF_PROXY,
    }


def _route(route: Route) -> dict[str, Any]:
    made: dict[str, Any] = {
        "family": route.family,
        "dst": route.to,
        "oif": route.index,
        "table": route.table,
    }
    if route.via:
        made["gateway"] = route.via
    if route.source:
        made["prefsrc"] = route.source
    if route.scope is not None:
        made["scope"] = route.scope
    if route.onlink:
        made["flags"] = _RTNH_F_ONLINK
    if route.metric:
        made["priority"] = route.metric
    return made


def _given_route(message: Any, index: int) -> Route:  # noqa: ANN401
    family = int(message["family"])
    to = f"{message.get('dst')}/{message['dst_len']}" if message["dst_len"] else "default"
    return Route(
        to=to,
        index=index,
        family=family,
        via=str(message.get("gateway") or ""),
        source=str(message.get("prefsrc") or ""),
        scope=int(message["scope"]) if family == socket.AF_INET else None,
        onlink=bool(message["flags"] & _RTNH_F_ONLINK),
        metric=int(message.get("priority") or 0),
    )


def _link(message: Any) -> Link:  # noqa: ANN401
    info = message.get("linkinfo")
    return Link(
        index=int(message["index"]),
        name=str(message.get("ifname")),
        kind=str((info and info.get("kind")) or ""),
        mac=str(message.get("address") or ""),
        up=bool(message["flags"] & IFF_UP),
        master=int(message.get("master") or 0),
        mtu=int(message.get("mtu") or 0),
        alias=str(message.get("IFLA_IFALIAS") or ""),
        loopback=bool(message["flags"] & 8),
    )


def _address(message: Any) -> InterfaceAddress:  # noqa: ANN401
    local = message.get("local") or message.get("address")
    return InterfaceAddress(
        int(message["index"]), f"{local}/{message['prefixlen']}", int(message["scope"])
    )
