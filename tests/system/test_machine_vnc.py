"""The remote display, seen by a client that speaks RFB (RFC 6143)."""

from __future__ import annotations

import re
import socket
import struct
import subprocess

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires(
    "program:qemu-system-x86_64", "program:qemu-img", "program:openssl"
)
VNC_AUTHENTICATION = 2


def answer(challenge: bytes, password: str) -> bytes:
    """Encrypt the challenge by DES; the bits of each byte of the key are turned around (7.2.2)."""
    key = password.encode().ljust(8, b"\0")
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    argv = ["openssl", "enc", "-des-ecb", "-nopad", "-K", turned.hex()]
    argv += ["-provider", "legacy", "-provider", "default"]
    return subprocess.run(argv, input=challenge, capture_output=True, check=True).stdout


class Display:
    """A client of a display."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=120)
        assert self.read(12) == b"RFB 003.008\n"
        self.sock.sendall(b"RFB 003.008\n")
        self.kinds = self.read(self.read(1)[0])

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            assert part, "the display hung up"
            data += part
        return data

    def enter(self, password: str) -> bool:
        self.sock.sendall(bytes([VNC_AUTHENTICATION]))
        self.sock.sendall(answer(self.read(16), password))
        return self.read(4) == b"\0\0\0\0"

    def name(self) -> str:
        self.sock.sendall(b"\1")
        head = self.read(24)
        assert struct.unpack(">HH", head[:4]) >= (320, 200)
        return self.read(struct.unpack(">I", head[20:])[0]).decode()


def test_a_client_sees_the_screen(world: World) -> None:
    world.run("prlctl", "create", "vm", "--vmtype", "vm", "--no-hdd")
    world.run("prlctl", "set", "vm", "--vnc-mode", "auto", "--vnc-passwd", "secret")
    world.run("prlctl", "set", "vm", "--vnc-address", "127.0.0.1")
    world.run("prlctl", "start", "vm")
    seen = re.search(r"mode=auto port=(\d+)", world.run("prlctl", "list", "-i", "vm"))
    assert seen
    port = int(seen[1])
    display = Display(port)
    assert display.kinds == bytes([VNC_AUTHENTICATION])  # nobody gets in without it
    assert display.enter("secret")
    assert "vm" in display.name()
    display.sock.close()
    assert not Display(port).enter("Secret")
    world.run("prlctl", "set", "vm", "--vnc-passwd", "other")  # at once
    assert Display(port).enter("other")
    world.run("prlctl", "stop", "vm", "--kill")
    with socket.create_server(("127.0.0.1", 0)) as free:  # the other may be somebody else's now
        port = free.getsockname()[1]
    manual = ("--vnc-mode", "manual", "--vnc-port", str(port), "--vnc-nopasswd")
    world.run("prlctl", "set", "vm", *manual)
    world.run("prlctl", "start", "vm")
    assert Display(port).kinds == b"\1"
    world.run("prlctl", "stop", "vm", "--kill")
