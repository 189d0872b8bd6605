"""What somebody has set in a network namespace: addresses, routes and rules, to put in another one.

Everything is kept as the kernel's own messages (base64), so that nothing is lost on the way; only
the numbers of links are put right, by name.  Spoken on a route netlink socket that was made in the
namespace.  Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_addr,fib_rules}.h.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_NEWLINK, _GETLINK = 16, 18
_NEWADDR, _GETADDR = 20, 22
_NEWROUTE, _GETROUTE = 24, 26
_NEWRULE, _GETRULE = 32, 34
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE, _APPEND = 1, 4, 0x300, 0x100, 0x400, 0x800
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFNAME, _IFMTU, _IFLINKINFO = 3, 4, 18
_IFA_FLAGS, _IFA_F_NODAD, _IFA_F_TENTATIVE, _IFA_F_DADFAILED = 8, 0x02, 0x40, 0x08
_RTA_IIF, _RTA_OIF, _RTA_MULTIPATH = 3, 4, 9
_RTPROT_KERNEL, _RTPROT_RA = 2, 9
_RT_TABLE_LOCAL = 255
_RTM_F_CLONED = 0x200
_RTNH_F_LINKDOWN, _RTNH_F_DEAD = 16, 1
_IFF_UP = 1
_DEFAULT_RULES = {(socket.AF_INET, 0), (socket.AF_INET, 32766), (socket.AF_INET, 32767),
                  (socket.AF_INET6, 0), (socket.AF_INET6, 32766)}  # fmt: skip
_FRA_PRIORITY = 6
# Fallback devices that every new namespace gets by itself (net/ipv4/ip_tunnel.c and kin).
_FALLBACK = frozenset({"lo", "sit0", "tunl0", "ip6tnl0", "ip6_vti0", "ip_vti0", "gre0", "gretap0",
                       "erspan0", "ip6gre0"})  # fmt: skip
_BUFFER = 1 << 18
_MOST = 100_000  # messages of one kind

Saved = dict[str, Any]


def save(netlink: int) -> Saved:
    """Return {"links": {number: name}, "up": [...], "addresses", "routes", "rules": [...]}."""
    with _speaking(netlink) as sock:
        links, up = {}, []
        for body in _dump(sock, _GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
            _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
            name = _attributes(body, 16)[_IFNAME].rstrip(b"\0").decode()
            links[str(index)] = name
            if flags & _IFF_UP:
                up.append(name)
        return {
            "links": links,
            "up": up,
            "addresses": [_text(x) for x in _dump(sock, _GETADDR, bytes(8))],
            "routes": [_text(x) for x in _dump(sock, _GETROUTE, bytes(12)) if _is_route(x)],
            "rules": [_text(x) for x in _dump(sock, _GETRULE, bytes(12)) if _is_rule(x)],
        }


def own_links(saved: Mapping[str, Any], known: set[str]) -> list[str]:
    """Return the links that are neither `known` nor there in every namespace."""
    return sorted(set(saved["links"].values()) - known - _FALLBACK)


def restore(netlink: int, saved: Mapping[str, Any]) -> list[str]:
    """Set everything again in a namespace that has the links; returns what the kernel refused.

    What is there already is no failure.  Call it once the links have the addresses that the node
    gives them.
    """
    refused: list[str] = []
    with _speaking(netlink) as sock:
        now = {}
        for body in _dump(sock, _GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
            _, _, index, _, _ = struct.unpack_from("=BxHiII", body)
            now[_attributes(body, 16)[_IFNAME].rstrip(b"\0").decode()] = index
        numbers = {int(old): now[name] for old, name in saved["links"].items() if name in now}
        for name in saved["up"]:
            if name in now:
                body = struct.pack("=BxHiII", 0, 0, now[name], _IFF_UP, _IFF_UP)
                _do(sock, _NEWLINK, 0, body)
        for kind, flags, key, change in (
            (_NEWADDR, _REPLACE, "addresses", _address),
            (_NEWROUTE, _APPEND, "routes", _route),
            (_NEWRULE, 0, "rules", lambda body, _numbers: body),
        ):
            for text in saved[key]:
                made = change(base64.b64decode(text), numbers)
                if made is not None and (why := _do(sock, kind, flags | _CREATE, made)):
                    refused.append(f"{key}: {why}")
    return refused


@contextmanager
def _speaking(netlink: int) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(netlink)) as sock:
        sock.settimeout(30.0)
        yield sock


def _dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    _send(sock, kind, _REQUEST | _DUMP, body)
    found: list[bytes] = []
    while True:
        for what, _, payload in _messages(sock.recv(_BUFFER)):
            if what == _DONE:
                return found
            if what == _ERROR:
                (code,) = struct.unpack_from("=i", payload)
                raise OSError(-code, os.strerror(-code))
            if len(found) < _MOST:
                found.append(payload)


def _do(sock: socket.socket, kind: int, flags: int, body: bytes) -> str:
    """Ask for something; returns why it was refused, "" when it was not."""
    _send(sock, kind, _REQUEST | _ACK | flags, body)
    while True:
        for what, _, payload in _messages(sock.recv(_BUFFER)):
            if what == _ERROR:
                (code,) = struct.unpack_from("=i", payload)
                return "" if code in {0, -17} else os.strerror(-code)  # EEXIST


def _send(sock: socket.socket, kind: int, flags: int, body: bytes) -> None:
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4


def _attributes(body: bytes, start: int) -> dict[int, bytes]:
    return {kind: body[at:end] for kind, at, end in _places(body, start)}


def _places(body: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, first byte, end) of the attributes' contents."""
    at = start
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            return
        yield kind & 0x3FFF, at + _ATTRIBUTE.size, at + length
        at += -(-length // 4) * 4


def _is_route(body: bytes) -> bool:
    table, protocol = body[4], body[5]
    (flags,) = struct.unpack_from("=I", body, 8)
    return (
        protocol not in {_RTPROT_KERNEL, _RTPROT_RA}
        and table != _RT_TABLE_LOCAL
        and not flags & _RTM_F_CLONED
    )


def _is_rule(body: bytes) -> bool:
    priority = _attributes(body, 12).get(_FRA_PRIORITY, b"\0\0\0\0")
    return (body[0], struct.unpack("=I", priority)[0]) not in _DEFAULT_RULES


def _address(body: bytes, numbers: Mapping[int, int]) -> bytes | None:
    """An address for the link as it is numbered now; an IPv6 one may be used at once."""
    (index,) = struct.unpack_from("=I", body, 4)
    if index not in numbers:
        return None
    made = bytearray(body)
    struct.pack_into("=I", made, 4, numbers[index])
    if body[0] == socket.AF_INET6:
        made[2] = made[2] & ~(_IFA_F_TENTATIVE | _IFA_F_DADFAILED) | _IFA_F_NODAD
        for kind, at, end in _places(body, 8):
            if kind == _IFA_FLAGS and end - at == 4:
                (flags,) = struct.unpack_from("=I", body, at)
                flags = flags & ~(_IFA_F_TENTATIVE | _IFA_F_DADFAILED) | _IFA_F_NODAD
                struct.pack_into("=I", made, at, flags)
    return bytes(made)


def _route(body: bytes, numbers: Mapping[int, int]) -> bytes | None:
    made = bytearray(body)
    (flags,) = struct.unpack_from("=I", body, 8)
    struct.pack_into("=I", made, 8, flags & ~(_RTNH_F_LINKDOWN | _RTNH_F_DEAD))
    for kind, at, end in _places(body, 12):
        if kind in {_RTA_OIF, _RTA_IIF} and end - at == 4:
            if not _renumber(made, at, numbers):
                return None
        elif kind == _RTA_MULTIPATH and not _renumber_hops(made, at, end, numbers):
            return None
    return bytes(made)


def _renumber_hops(body: bytearray, at: int, end: int, numbers: Mapping[int, int]) -> bool:
    """Put the links of a route's next hops right (struct rtnexthop)."""
    while at + 8 <= end:
        (length,) = struct.unpack_from("=H", body, at)
        body[at + 2] &= ~(_RTNH_F_LINKDOWN | _RTNH_F_DEAD) & 0xFF
        if length < 8 or not _renumber(body, at + 4, numbers):
            return False
        at += -(-length // 4) * 4
    return True


def _renumber(body: bytearray, at: int, numbers: Mapping[int, int]) -> bool:
    (index,) = struct.unpack_from("=I", body, at)
    if index not in numbers:
        return False
    struct.pack_into("=I", body, at, numbers[index])
    return True


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode()
