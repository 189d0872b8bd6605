"""Neighbour discovery of IPv6 (RFC 4861) as frames: advertisements, and who has an address."""

from __future__ import annotations

import socket
import struct

ETH_IPV6 = 0x86DD
ICMPV6 = 58
ADVERT = 136
_SOLICIT, _OVERRIDE = 135, 1 << 29
_NOBODY = bytes(16)
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
_SOLICITED_NODE = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13]
_TARGET_LINK_LAYER = 2
_HEADER = struct.Struct("!6s6sHIHBB16s16sBBHI16s")  # Ethernet, IPv6, ICMPv6 with a target


def advertisement(mac: bytes, address: str) -> bytes:
    """Return the frame that tells all nodes that ADDRESS is at MAC now, whatever they knew."""
    own = socket.inet_pton(socket.AF_INET6, address)
    option = struct.pack("!BB6s", _TARGET_LINK_LAYER, 1, mac)
    message = struct.pack("!BBHI16s", ADVERT, 0, 0, _OVERRIDE, own) + option
    return _frame(mac, own, _ALL_NODES, message)


def question(mac: bytes, address: str) -> bytes:
    """Return the frame that asks who has ADDRESS, as duplicate detection does (RFC 4862, 5.4.2).

    It comes from nobody, so nobody learns anything of it, and is answered to all nodes.
    """
    target = socket.inet_pton(socket.AF_INET6, address)
    message = struct.pack("!BBHI16s", _SOLICIT, 0, 0, 0, target)
    return _frame(mac, _NOBODY, _SOLICITED_NODE + target[13:], message)


def advertised(frame: bytes) -> tuple[str, bytes] | None:
    """Return the address that an advertisement speaks for, and the MAC that it came from."""
    if len(frame) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(frame)
    if (fields[2], fields[5], fields[9]) != (ETH_IPV6, ICMPV6, ADVERT):
        return None
    return socket.inet_ntop(socket.AF_INET6, fields[13]), fields[1]


def _frame(mac: bytes, source: bytes, target: bytes, message: bytes) -> bytes:
    pseudo = source + target + struct.pack("!II", len(message), ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 255) + source + target
    # To the group of the address (RFC 2464, 7).
    return b"\x33\x33" + target[12:] + mac + struct.pack("!H", ETH_IPV6) + header + message


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
