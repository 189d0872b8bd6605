"""ARP (RFC 826, RFC 5227): frames, and announcements of addresses on an interface of the node.

Closing a packet socket, and binding one that has a protocol, waits until no processor looks at it
any more (synchronize_net in packet_release and packet_do_bind): 10 to 30 ms.  So what only sends
uses one socket of this process, which is never bound and never closed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterable

from pyvz.linux import ndp

ETH_ARP = 0x0806
_REQUEST = 1
_BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERNET = 1
_NOBODY = b"\0" * 4
_SIOCGIFHWADDR = 0x8927
_lock = threading.Lock()
_senders: dict[tuple[int, int], socket.socket] = {}  # by process and network namespace


def question(mac: bytes, address: str) -> bytes:
    """Return the frame that asks who has ADDRESS without telling anybody anything (a probe)."""
    return _frame(mac, _NOBODY, socket.inet_aton(address))


def claimed(frame: bytes) -> tuple[str, bytes] | None:
    """Return the address that a frame says its sender has, and the sender's MAC."""
    if len(frame) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(frame)
    if fields[2] != ETH_ARP:
        return None
    return socket.inet_ntoa(fields[9]), fields[8]


def announce(device: str, addresses: Iterable[str], mac: str = "") -> None:
    """Tell everybody on an interface that ADDRESSES are here now.

    IPv4: gratuitous ARP; IPv6: an advertisement that nobody asked for (ndp.py).  mac: whose they
    are, "" for the interface's own.  OSError.
    """
    owner = bytes.fromhex(mac.replace(":", "")) or hardware_address(device)
    for address in addresses:
        if ":" in address:
            send(device, ndp.ETH_IPV6, ndp.advertisement(owner, address))
            continue
        own = socket.inet_aton(address)
        send(device, ETH_ARP, _frame(owner, own, own))


def send(device: str, protocol: int, frame: bytes) -> None:
    """Send a frame by an interface of the network namespace where we are; OSError."""
    _sender().sendto(frame, (device, protocol))


def hardware_address(device: str) -> bytes:
    """Return the MAC of an interface; OSError."""
    # struct ifreq: name, then struct sockaddr (family, 14 bytes)
    answer = fcntl.ioctl(_sender(), _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()))
    return answer[18:24]


def _frame(mac: bytes, sender: bytes, target: bytes) -> bytes:
    return _HEADER.pack(
        *(_BROADCAST, mac, ETH_ARP, _ETHERNET, 0x0800, 6, 4, _REQUEST),
        *(mac, sender, b"\0" * 6, target),
    )


def _sender() -> socket.socket:
    """The socket that only sends, in the network namespace where we are."""
    key = os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino
    with _lock:
        if key not in _senders:
            _senders[key] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        return _senders[key]
