"""ARP probes and announcements (RFC 826, RFC 5227) on an interface of the node.

Closing a packet socket, and binding one that has a protocol, waits until no processor looks at it
any more (synchronize_net in packet_release and packet_do_bind): 10 to 30 ms.  So what only sends
uses one socket of this process, which is never bound and never closed; and a probe listens to all
interfaces, and is closed by a thread of its own.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping

from pyvz.linux import ndp

_ETH_ARP = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERNET = 1
_NOBODY = b"\0" * 4
_SIOCGIFHWADDR = 0x8927
_lock = threading.Lock()
_senders: dict[tuple[int, int], socket.socket] = {}  # by process and network namespace


def _frame(mac: bytes, operation: int, sender: bytes, target: bytes) -> bytes:
    return _HEADER.pack(
        *(_BROADCAST, mac, _ETH_ARP, _ETHERNET, 0x0800, 6, 4, operation),
        *(mac, sender, b"\0" * 6, target),
    )


def _sender() -> socket.socket:
    """The socket that only sends, in the network namespace where we are."""
    key = os.getpid(), os.stat("/proc/thread-self/ns/net").st_ino
    with _lock:
        if key not in _senders:
            _senders[key] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        return _senders[key]


def _hardware_address(sock: socket.socket, device: str) -> bytes:
    # struct ifreq: name, then struct sockaddr (family, 14 bytes)
    answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("16s24x", device.encode()))
    return answer[18:24]


class Probe:
    """Asks who has some IPv4 addresses, on one interface, without telling anybody anything.

    A context manager: the questions are sent when it is entered.  OSError.
    """

    def __init__(self, device: str, addresses: Iterable[str]) -> None:
        self._wanted = {socket.inet_aton(address): address for address in addresses}
        self._sent = 0.0
        self._device = device
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ARP))
        try:
            self._mac = _hardware_address(self._sock, device)
            self._sock.setblocking(False)  # noqa: FBT003  # the name of the function
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Probe:
        for target in self._wanted:
            frame = _frame(self._mac, _REQUEST, _NOBODY, target)
            self._sock.sendto(frame, (self._device, _ETH_ARP))
        self._sent = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        threading.Thread(target=self._sock.close, name="arp", daemon=True).start()

    def answers(self, patience: float) -> Mapping[str, str]:
        """Return address -> MAC of whoever answers within PATIENCE seconds of the question."""
        found: dict[str, str] = {}
        deadline = self._sent + patience
        while len(found) < len(self._wanted):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._sock], [], [], max(0.0, left))
            if not ready:
                break
            frame, where = self._sock.recvfrom(2048)
            if where[0] == self._device:
                self._take(frame, found)
        return found

    def _take(self, frame: bytes, found: dict[str, str]) -> None:
        if len(frame) < _HEADER.size:
            return
        fields = _HEADER.unpack_from(frame)
        sender_mac, sender = fields[8], fields[9]
        if fields[2] == _ETH_ARP and sender in self._wanted and sender_mac != self._mac:
            found[self._wanted[sender]] = sender_mac.hex(":")


def announce(device: str, addresses: Iterable[str], mac: str = "") -> None:
    """Tell everybody on an interface that ADDRESSES are here now.

    IPv4: gratuitous ARP; IPv6: an advertisement that nobody asked for (ndp.py).  mac: whose they
    are, "" for the interface's own.  OSError.
    """
    sock = _sender()
    owner = bytes.fromhex(mac.replace(":", "")) or _hardware_address(sock, device)
    for address in addresses:
        if ":" in address:
            sock.sendto(ndp.advertisement(owner, address), (device, ndp.ETH_IPV6))
            continue
        own = socket.inet_aton(address)
        sock.sendto(_frame(owner, _REQUEST, own, own), (device, _ETH_ARP))
