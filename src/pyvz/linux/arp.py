"""ARP probes and announcements (RFC 826, RFC 5227) on an interface of the node."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from pyvz.linux import ndp

_ETH_ARP = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERNET = 1
_NOBODY = b"\0" * 4


def _frame(mac: bytes, operation: int, sender: bytes, target: bytes) -> bytes:
    return _HEADER.pack(
        *(_BROADCAST, mac, _ETH_ARP, _ETHERNET, 0x0800, 6, 4, operation),
        *(mac, sender, b"\0" * 6, target),
    )


class Probe:
    """Asks who has some IPv4 addresses, on one interface, without telling anybody anything.

    A context manager: the questions are sent when it is entered.  OSError.
    """

    def __init__(self, device: str, addresses: Iterable[str]) -> None:
        self._wanted = {socket.inet_aton(address): address for address in addresses}
        self._sent = 0.0
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ARP))
        try:
            self._sock.bind((device, _ETH_ARP))
            self._sock.setblocking(False)  # noqa: FBT003  # the name of the function
        except BaseException:
            self._sock.close()
            raise
        self._mac = self._sock.getsockname()[4]

    def __enter__(self) -> Probe:
        for target in self._wanted:
            self._sock.send(_frame(self._mac, _REQUEST, _NOBODY, target))
        self._sent = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def answers(self, patience: float) -> Mapping[str, str]:
        """Return address -> MAC of whoever answers within PATIENCE seconds of the question."""
        found: dict[str, str] = {}
        deadline = self._sent + patience
        while len(found) < len(self._wanted):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._sock], [], [], max(0.0, left))
            if not ready:
                break
            self._take(self._sock.recv(2048), found)
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
    are, "" for the interface's own.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ARP)) as sock:
        sock.bind((device, _ETH_ARP))
        owner = bytes.fromhex(mac.replace(":", "")) or sock.getsockname()[4]
        for address in addresses:
            if ":" in address:
                sock.send(ndp.advertisement(owner, address))
                continue
            own = socket.inet_aton(address)
            sock.send(_frame(owner, _REQUEST, own, own))
