"""Many requests of rtnetlink(7) in one go: what a start sends, without a round trip for each.

pyroute2 (netlink.py) takes 0.4 ms for a request and 0.15 s to be imported; a start has thirty of
them.  Here they are put into one buffer, sent at once, and their answers read.  Only what
containers' interfaces need; everything else goes through netlink.py.

The kernel carries out every request of a buffer, also after one that has failed; the first failure
is what the caller is told, who then takes everything back.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, ip_address, ip_interface
from typing import NamedTuple

from pyvz.errors import NetworkError
from pyvz.linux.netlink import IFF_NOARP, IFF_UP, InterfaceAddress, Link, Route, VethEnd

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_ATTRIBUTE = struct.Struct("=HH")

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _NEWNEIGH, _DELNEIGH = 24, 25, 28, 29
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_REPLACE, _EXCL, _CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_IFALIAS, _IFLA_STATS64, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 23, 28, 29
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _NODAD = 1, 2, 4, 8, 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_STATIC, _UNICAST, _NOWHERE, _ONLINK = 4, 1, 255, 4
_NDA_DST, _NDA_LLADDR, _PROXY = 1, 2, 8
_BRIDGE = 7  # AF_BRIDGE
_SETLINK, _PROTINFO, _NESTED = 19, 12, 0x8000
_LEARNING, _UNICAST_FLOOD = 8, 9  # IFLA_BRPORT_
_STATION, _OF_MASTER = 0x40, 4  # NUD_NOARP: it does not age; NTF_MASTER
_TYPE = 0x3FFF  # without the flags of nesting
_LOOPBACK = 8
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
_AT_ONCE = 64  # requests of one buffer: their answers must fit the socket
_PATIENCE = struct.pack("ll", 30, 0)


class LinkChange(NamedTuple):
    """What is to change of a link; None, 0 and "": nothing.  master: 0 is none."""

    up: bool | None = None
    arp: bool | None = None
    master: int | None = None
    mtu: int = 0
    alias: str = ""
    mac: str = ""


class Passed(NamedTuple):
    """Counters of a link (the first of struct rtnl_link_stats64)."""

    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    errors_in: int = 0
    errors_out: int = 0
    dropped_in: int = 0
    dropped_out: int = 0


class _Request(NamedTuple):
    kind: int
    flags: int
    body: bytes
    what: str  # what could not be done
    gone_is_fine: bool = False


class Requests:
    """A list of requests, for the network namespace of SOCK (a route netlink socket) or ours."""

    def __init__(self, sock: int | None = None) -> None:
        self._sock = sock
        self._listed: list[_Request] = []

    # -- what can be asked for ------------------------------------------------------------------

    def veth(self, end: VethEnd, peer: VethEnd) -> None:
        """Make a pair, both ends down; the name may not be taken."""
        inner = _LINK.pack(0, 0, 0, 0, 0) + _end(peer)
        data = _attribute(_INFO_DATA, _attribute(_VETH_PEER, inner))
        info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"veth\0") + data)
        body = _LINK.pack(0, 0, 0, 0, 0) + _end(end) + info
        self._add(_NEWLINK, _CREATE | _EXCL, body, f"make the interface {end.name}")

    def link(self, link: Link, change: LinkChange) -> None:
        """Change a link."""
        flags = mask = 0
        if change.up is not None:
            flags, mask = IFF_UP if change.up else 0, IFF_UP
        if change.arp is not None:
            flags, mask = flags | (0 if change.arp else IFF_NOARP), mask | IFF_NOARP
        body = _LINK.pack(0, 0, link.index, flags, mask)
        if change.master is not None:
            body += _attribute(_IFLA_MASTER, _number(change.master))
        if change.mtu:
            body += _attribute(_IFLA_MTU, _number(change.mtu))
        if change.alias:
            body += _attribute(_IFLA_IFALIAS, change.alias.encode())
        if change.mac:
            body += _attribute(_IFLA_ADDRESS, _octets(change.mac))
        self._add(_NEWLINK, 0, body, f"change the interface {link.name}")

    def move(self, link: Link, namespace: int) -> None:
        """Move a link into the namespace of a descriptor; its addresses are gone then."""
        body = _LINK.pack(0, 0, link.index, 0, 0)
        body += _attribute(_IFLA_NET_NS_FD, _number(namespace))
        self._add(_NEWLINK, 0, body, f"move the interface {link.name}")

    def delete_link(self, link: Link) -> None:
        """Remove a link (and its peer); nothing happens when it is gone."""
        body = _LINK.pack(0, 0, link.index, 0, 0)
        self._add(_DELLINK, 0, body, f"remove the interface {link.name}", gone_is_fine=True)

    def address(self, index: int, address: str) -> None:
        """Give a link "10.1.2.3/24", in use at once.

        An IPv6 address comes without duplicate detection: for the one or two seconds which that
        takes the kernel answers for it to nobody, no socket can be bound to it, and what is sent
        has a source like ::1.  Whether somebody else has it is for the caller to find out.
        """
        body = _address_body(index, address)
        parsed = ip_interface(address)
        if isinstance(parsed, IPv4Interface) and parsed.network.prefixlen < 31:
            body += _attribute(_IFA_BROADCAST, parsed.network.broadcast_address.packed)
        if parsed.version == 6:
            body += _attribute(_IFA_FLAGS, struct.pack("=I", _NODAD))
        self._add(_NEWADDR, _CREATE | _REPLACE, body, f"give an interface the address {address}")

    def delete_address(self, index: int, address: str) -> None:
        """Take an address away; nothing happens when it is not there."""
        body = _address_body(index, address)
        self._add(_DELADDR, 0, body, f"take the address {address} away", gone_is_fine=True)

    def route(self, route: Route) -> None:
        """Set a route, in the place of another one to the same destination."""
        self._add(_NEWROUTE, _CREATE | _REPLACE, _route_body(route), f"set the route to {route.to}")

    def delete_route(self, route: Route) -> None:
        """Remove a route; nothing happens when it is not there."""
        body = _route_body(route, scope=_NOWHERE if route.scope is None else route.scope)
        self._add(_DELROUTE, 0, body, f"remove the route to {route.to}", gone_is_fine=True)

    def proxy(self, link: Link, address: str) -> None:
        """Answer ARP (NDP) for ADDRESS on a link."""
        body = _proxy_body(link.index, address)
        self._add(_NEWNEIGH, _CREATE | _REPLACE, body, f"answer for {address}")

    def delete_proxy(self, link: Link, address: str) -> None:
        """Answer no longer."""
        body = _proxy_body(link.index, address)
        self._add(_DELNEIGH, 0, body, f"stop answering for {address}", gone_is_fine=True)

    def port(self, link: Link, *, learning: bool, flood: bool) -> None:
        """Set whether the bridge of a port learns there, and sends there what it knows not where.

        Also right after the request that has put the link into the bridge.
        """
        given = struct.pack("=B", learning), struct.pack("=B", flood)
        data = _attribute(_LEARNING, given[0]) + _attribute(_UNICAST_FLOOD, given[1])
        body = _LINK.pack(_BRIDGE, 0, link.index, 0, 0) + _attribute(_PROTINFO | _NESTED, data)
        self._add(_SETLINK, 0, body, f"change the bridge's port {link.name}")

    def station(self, link: Link, mac: str) -> None:
        """Tell the bridge of a port that a hardware address is behind it, and nowhere else."""
        body = _NEIGHBOUR.pack(_BRIDGE, link.index, _STATION, _OF_MASTER, 0)
        body += _attribute(_NDA_LLADDR, _octets(mac))
        self._add(_NEWNEIGH, _CREATE | _REPLACE, body, f"pin {mac} to {link.name}")

    def delete_station(self, link: Link, mac: str) -> None:
        """Let the bridge find out by itself where a hardware address is."""
        body = _NEIGHBOUR.pack(_BRIDGE, link.index, 0, _OF_MASTER, 0)
        body += _attribute(_NDA_LLADDR, _octets(mac))
        self._add(_DELNEIGH, 0, body, f"unpin {mac} from {link.name}", gone_is_fine=True)

    # -- sending --------------------------------------------------------------------------------

    def send(self) -> None:
        """Have everything done, in its order, and forget it; NetworkError: the first failure."""
        listed, self._listed = self._listed, []
        failures: list[tuple[_Request, int]] = []
        with _opened(self._sock) as sock:
            for start in range(0, len(listed), _AT_ONCE):
                part = listed[start : start + _AT_ONCE]
                failures += _carried_out(sock, part)
        for request, code in failures:
            raise NetworkError(f"Cannot {request.what}: {os.strerror(code)}")

    def links(self, names: Iterable[str] = (), indexes: Iterable[int] = ()) -> dict[str, Link]:
        """Return those of the links that there are, by name."""
        bodies = [
            _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, _text(name))
            for name in dict.fromkeys(names)
        ]
        bodies += [_LINK.pack(0, 0, index, 0, 0) for index in dict.fromkeys(indexes)]
        mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
        found: dict[str, Link] = {}
        with _opened(self._sock) as sock:
            for body in bodies:
                sock.send(_message(_GETLINK, _REQUEST, 1, body + mask))
                for kind, _, answer in _received(sock):
                    if kind == _NEWLINK:
                        link = _parsed_link(answer)
                        found[link.name] = link
        return found

    def passed(self, names: Iterable[str]) -> dict[str, Passed]:
        """Return what has passed the links, by name; those that are not there are left out."""
        found: dict[str, Passed] = {}
        with _opened(self._sock) as sock:
            for name in names:
                body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, _text(name))
                sock.send(_message(_GETLINK, _REQUEST, 1, body))
                for kind, _, answer in _received(sock):
                    counted = _attributes(answer, _LINK.size).get(_IFLA_STATS64)
                    if kind == _NEWLINK and counted is not None:
                        found[name] = Passed(*struct.unpack_from("=8Q", counted))
        return found

    def addresses(self) -> list[InterfaceAddress]:
        """Return every address of every link."""
        found: list[InterfaceAddress] = []
        with _opened(self._sock) as sock:
            sock.send(_message(_GETADDR, _REQUEST | _DUMP, 1, _ADDRESS.pack(0, 0, 0, 0, 0)))
            while True:
                for kind, _, answer in _received(sock):
                    if kind == _DONE:
                        return found
                    if kind == _ERROR:
                        raise NetworkError("Cannot list the addresses")
                    found.append(_parsed_address(answer))

    def _add(
        self, kind: int, flags: int, body: bytes, what: str, *, gone_is_fine: bool = False
    ) -> None:
        flags |= _REQUEST | _ACK
        self._listed.append(_Request(kind, flags, body, what, gone_is_fine))


@contextmanager
def _opened(given: int | None) -> Iterator[socket.socket]:
    if given is None:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    else:
        made = socket.socket(fileno=os.dup(given))
    with made as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        yield sock


def _carried_out(sock: socket.socket, part: list[_Request]) -> Iterator[tuple[_Request, int]]:
    """Send requests and read an answer for each; yield what has failed."""
    messages = (_message(r.kind, r.flags, n, r.body) for n, r in enumerate(part, 1))
    try:
        sock.send(b"".join(messages))
        left = len(part)
        while left:
            for kind, number, answer in _received(sock):
                if kind != _ERROR or not 1 <= number <= len(part):
                    continue
                left -= 1
                code = -int(struct.unpack_from("=i", answer)[0])
                request = part[number - 1]
                if code and not (request.gone_is_fine and code in _GONE):
                    yield request, code
    except OSError as error:
        raise NetworkError(f"Cannot {part[0].what}: {error.strerror}") from error


def _received(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Read one datagram; yield (type, number, body) of its messages."""
    data = sock.recv(1 << 18)
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, number, _ = _HEADER.unpack_from(data, at)
        yield kind, number, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return found


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _number(value: int) -> bytes:
    return struct.pack("=I", value)


def _end(end: VethEnd) -> bytes:
    made = _attribute(_IFLA_IFNAME, _text(end.name))
    if end.mac:
        made += _attribute(_IFLA_ADDRESS, _octets(end.mac))
    if end.namespace is not None:
        made += _attribute(_IFLA_NET_NS_FD, _number(end.namespace))
    return made


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _address_body(index: int, address: str) -> bytes:
    parsed = ip_interface(address)
    packed = parsed.ip.packed
    head = _ADDRESS.pack(_family(parsed.version), parsed.network.prefixlen, 0, 0, index)
    return head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


def _route_body(route: Route, scope: int | None = None) -> bytes:
    scope = scope if scope is not None else route.scope or 0
    length, target = 0, b""
    if route.to != "default":
        net = ip_interface(route.to)
        length, target = net.network.prefixlen, _attribute(_RTA_DST, net.ip.packed)
    flags = _ONLINK if route.onlink else 0
    head = _ROUTE.pack(route.family, length, 0, 0, route.table, _STATIC, scope, _UNICAST, flags)
    body = head + target + _attribute(_RTA_OIF, _number(route.index))
    if route.via:
        body += _attribute(_RTA_GATEWAY, ip_address(route.via).packed)
    if route.source:
        body += _attribute(_RTA_PREFSRC, ip_address(route.source).packed)
    if route.metric:
        body += _attribute(_RTA_PRIORITY, _number(route.metric))
    return body


def _proxy_body(index: int, address: str) -> bytes:
    parsed = ip_address(address)
    head = _NEIGHBOUR.pack(_family(parsed.version), index, 0, _PROXY, 0)
    return head + _attribute(_NDA_DST, parsed.packed)


def _parsed_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = _attributes(body, _LINK.size)
    info = _attributes(found.get(_IFLA_LINKINFO, b""), 0)

    def number(kind: int) -> int:
        return int(struct.unpack("=I", found[kind])[0]) if kind in found else 0

    def text(raw: bytes) -> str:
        return raw.rstrip(b"\0").decode(errors="replace")

    return Link(
        index=index,
        name=text(found.get(_IFLA_IFNAME, b"")),
        kind=text(info.get(_INFO_KIND, b"")),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
        master=number(_IFLA_MASTER),
        mtu=number(_IFLA_MTU),
        alias=text(found.get(_IFLA_IFALIAS, b"")),
        loopback=bool(flags & _LOOPBACK),
    )


def _parsed_address(body: bytes) -> InterfaceAddress:
    _, length, _, scope, index = _ADDRESS.unpack_from(body)
    found = _attributes(body, _ADDRESS.size)
    raw = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    return InterfaceAddress(index, f"{ip_address(raw)}/{length}", scope)
