"""A flood of frames, and who sees them; run in a container's network namespace, by its root.

    flood.py send DEVICE MAC ADDRESS TARGET COUNT   what TARGET (a MAC) or everybody shall not see
    flood.py watch DEVICE                           until stdin ends; prints {kind: frames seen}

Every frame bears a mark and its kind, so that what is seen is known to be of the flood.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator

MARK = b"pyvz-flood:"
EVERYBODY = b"\xff" * 6
FOREIGN = socket.inet_aton("10.88.0.66")
OUTGOING = 4  # PACKET_OUTGOING


def main() -> None:
    what, device, *words = sys.argv[1:]
    if what == "watch":
        watch(device)
        return
    mac, address, target, count = words
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        for number in range(int(count)):
            for frame in frames(octets(mac), socket.inet_aton(address), octets(target), number):
                sock.sendto(frame, (device, 0x0800))


def frames(mac: bytes, own: bytes, target: bytes, number: int) -> Iterator[bytes]:
    """One frame of each kind."""
    other = b"\x02\x66" + struct.pack("!I", number)
    somewhere = socket.inet_aton("10.88.0.3")
    yield ethernet(EVERYBODY, other, 0x0800, udp(own, somewhere, b"mac."))
    yield ethernet(EVERYBODY, mac, 0x0806, arp(mac, FOREIGN)) + MARK + b"arp."
    yield ethernet(target, mac, 0x0800, udp(FOREIGN, somewhere, b"udp."))
    yield ethernet(target, mac, 0x0800, syn(FOREIGN, somewhere, number))
    yield ethernet(other, mac, 0x0800, udp(own, somewhere, b"unknown."))
    yield ethernet(EVERYBODY, mac, 0x0806, arp(mac, own)) + MARK + b"broadcast."


def ethernet(to: bytes, mac: bytes, kind: int, payload: bytes) -> bytes:
    return to + mac + struct.pack("!H", kind) + payload


def arp(mac: bytes, sender: bytes) -> bytes:
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, sender, bytes(6), b"\x0a\x58\0\7")


def ip(protocol: int, source: bytes, target: bytes, payload: bytes) -> bytes:
    """With a right checksum: a bridge with br_netfilter passes no others on, and cuts trailers."""
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, target
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + head[12:] + payload


def udp(source: bytes, target: bytes, kind: bytes) -> bytes:
    data = MARK + kind
    return ip(17, source, target, struct.pack("!HHHH", 7777, 7777, 8 + len(data), 0) + data)


def syn(source: bytes, target: bytes, number: int) -> bytes:
    head = struct.pack("!HHIIBBHHH", 7777, 80, number, 0, 0x50, 2, 1, 0, 0)
    return ip(6, source, target, head + MARK + b"syn.")


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def watch(device: str) -> None:
    seen: Counter[str] = Counter()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([sock, sys.stdin], [], [])
            if sock in ready:
                frame, where = sock.recvfrom(2048)
                if where[0] == device and where[2] != OUTGOING and MARK in frame:
                    seen[frame.partition(MARK)[2].partition(b".")[0].decode()] += 1
            elif not sys.stdin.read(1):
                print(json.dumps(seen), flush=True)
                return


if __name__ == "__main__":
    main()
