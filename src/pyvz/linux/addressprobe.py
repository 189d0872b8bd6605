"""Who on the wire has an address?  Asked by ARP (RFC 5227) and neighbour discovery (RFC 4862).

The questions are sent when a Probe is made; a thread of its own then listens for LISTENING seconds
and closes the sockets, which takes 10 to 30 ms each (arp.py).  They hear all interfaces, because
to bind one takes as long.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import NamedTuple

from pyvz.linux import arp, ndp
from pyvz.linux.patience import looks

LISTENING = 1.0  # seconds; so long the original waits, and duplicate detection (RFC 4861, 10)
_LOOK = 0.01  # seconds between two looks of who waits
_SO_ATTACH_FILTER = 26
_FILTER = (  # bpf(4): only advertisements; a node that routes IPv6 would see all of it here
    (0x30, 0, 0, 20),  # ldb: the next header of IPv6
    (0x15, 0, 3, ndp.ICMPV6),
    (0x30, 0, 0, 54),  # ldb: the type of ICMPv6
    (0x15, 0, 1, ndp.ADVERT),
    (0x06, 0, 0, 0xFFFF),  # ret: all of it
    (0x06, 0, 0, 0),
)


class Question(NamedTuple):
    """An address (bare, either family), and the interface of the node by which it is asked for."""

    address: str
    device: str


Late = Callable[[Question, str], None]


class Probe:
    """Asks who has some addresses, without telling anybody anything.

    An interface that is gone, or down, has nobody to ask.  late: is told of every answer that
    comes when nobody waits any more (the question and a MAC), in a thread of its own.
    """

    def __init__(self, questions: Iterable[Question], late: Late | None = None) -> None:
        self._asked = {Question(str(ip_address(x.address)), x.device): x for x in questions}
        self._found: dict[Question, str] = {}
        self._own: dict[str, bytes] = {}
        self._late = late
        self._over = False  # nobody waits any more
        self._changed = threading.Condition()
        self._looking = threading.Lock()  # who reads from the sockets, or closes them
        self._socks: list[socket.socket] = []
        self._sent = time.monotonic()
        if self._asked:
            self._ask()

    def answers(self, patience: float) -> Mapping[Question, str]:
        """Return question -> MAC of whoever answers within PATIENCE seconds of the question.

        What has come by then counts, also when nobody had the time to look at it; and what is
        waited from now on is counted in looks (patience.py).
        """
        left = self._sent + patience - time.monotonic()
        for step in looks(left, _LOOK):
            self._drain()
            with self._changed:
                if len(self._found) == len(self._asked):
                    break
                self._changed.wait(step)
        self._drain()
        with self._changed:
            self._over = True
            return dict(self._found)

    def _drain(self) -> None:
        """Look at all that has come."""
        with self._looking:
            while ready := select.select(self._socks, [], [], 0)[0]:
                for sock in ready:
                    self._take(*sock.recvfrom(2048))

    def _ask(self) -> None:
        with ExitStack() as undo:
            socks = [undo.enter_context(_listener(x)) for x in self._protocols()]
            for question in self._asked:
                with suppress(OSError):
                    self._send(question)
            self._sent = time.monotonic()
            self._socks = socks
            threading.Thread(target=self._listen, args=(socks,), name="probe", daemon=True).start()
            undo.pop_all()

    def _protocols(self) -> list[int]:
        six = {":" in each.address for each in self._asked}
        return [ndp.ETH_IPV6 if each else arp.ETH_ARP for each in sorted(six)]

    def _send(self, question: Question) -> None:
        mac = self._own.setdefault(question.device, arp.hardware_address(question.device))
        if ":" in question.address:
            arp.send(question.device, ndp.ETH_IPV6, ndp.question(mac, question.address))
        else:
            arp.send(question.device, arp.ETH_ARP, arp.question(mac, question.address))

    def _listen(self, socks: list[socket.socket]) -> None:
        deadline = self._sent + LISTENING
        try:
            while len(self._found) < len(self._asked):
                left = deadline - time.monotonic()
                ready, _, _ = select.select(socks, [], [], max(0.0, left))
                if not ready or left <= 0:
                    break
                self._drain()
        finally:
            with self._looking:
                self._socks = []
                for sock in socks:
                    sock.close()

    def _take(self, frame: bytes, where: tuple[str, int, int, int, bytes]) -> None:
        claim = ndp.advertised(frame) if where[1] == ndp.ETH_IPV6 else arp.claimed(frame)
        asked = self._asked.get(Question(claim[0], where[0])) if claim is not None else None
        if asked is None or claim is None or claim[1] == self._own.get(asked.device):
            return
        mac = claim[1].hex(":")
        with self._changed:
            if asked in self._found:
                return
            self._found[asked] = mac
            self._changed.notify_all()
            late = self._late if self._over else None
        if late is not None:
            late(asked, mac)


def _listener(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    if protocol == ndp.ETH_IPV6:
        code = b"".join(struct.pack("=HBBI", *each) for each in _FILTER)
        held = array("B", code)
        program = struct.pack("@HP", len(_FILTER), held.buffer_info()[0])  # struct sock_fprog
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    return made
