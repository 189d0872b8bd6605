"""Neighbour advertisements of IPv6 (RFC 4861, 4.4 and 7.2.6), as frames."""

from __future__ import annotations

import socket
import struct

_EVERYBODY = bytes.fromhex("333300000001")  # ff02::1, RFC 2464
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
ETH_IPV6, _ICMPV6 = 0x86DD, 58
_ADVERT, _OVERRIDE = 136, 1 << 29
_TARGET_LINK_LAYER = b"\x02\x01"


def advertisement(mac: bytes, address: str) -> bytes:
    """Return the frame that tells all nodes that ADDRESS is at MAC now, whatever they knew."""
    own = socket.inet_pton(socket.AF_INET6, address)
    body = struct.pack("!BBHI", _ADVERT, 0, 0, _OVERRIDE) + own + _TARGET_LINK_LAYER + mac
    pseudo = own + _ALL_NODES + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + own + _ALL_NODES
    return _EVERYBODY + mac + struct.pack("!H", ETH_IPV6) + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
