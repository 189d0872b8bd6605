"""UEFI: the firmware's own shell is reached on the serial line, and its variables are kept."""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img"),
    pytest.mark.skipif(not Path("/usr/share/OVMF").is_dir(), reason="no package ovmf"),
    pytest.mark.long,
]
VENDOR = "7b3f1c52-93ca-11d2-aa0d-0242ac120002"  # ours: the firmware guards its own


class Shell:
    """The EFI shell of a machine, on its serial line."""

    def __init__(self, world: World) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        path = next((world.root / "run/pyvz/vm").glob("*/console.sock"))
        self.sock.connect(str(path))
        self.seen = ""

    def until(self, wanted: str) -> str:
        deadline = time.monotonic() + 240
        while wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen[-500:]
            with suppress(TimeoutError):
                self.seen += self.sock.recv(4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(wanted)
        return before

    def reached(self) -> None:
        """Wait for the prompt; a key pressed too early would lead to the menus of the firmware."""
        self.until("Shell> ")

    def type(self, letter: str) -> None:
        """Press a key and wait until it has come back: it has no room for more than a few."""
        self.sock.sendall(letter.encode())
        deadline, told = time.monotonic() + 10, ""
        while letter not in told and time.monotonic() < deadline:
            with suppress(TimeoutError):
                told += self.sock.recv(4096).decode(errors="replace")
        self.seen += told

    def run(self, words: str) -> str:
        """Run a command; what is typed comes back letter by letter, so "done" is only printed."""
        for letter in f"{words}\recho done{len(words)}\r":
            self.type(letter)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.until(f"done{len(words)}"))


def test_secure_boot(world: World) -> None:
    """The firmware's own shell, which is not signed, is refused; without secure boot it starts."""
    world.run("prlctl", "create", "vm", "--vmtype", "vm")
    assert "needs UEFI" in world.run("prlctl", "set", "vm", "--efi-secure-boot", "on", code=1)
    words = ("--efi-boot", "on", "--efi-secure-boot", "on", "--memsize", "256")
    world.run("prlctl", "set", "vm", *words)
    assert "EFI secure boot: on" in world.run("prlctl", "list", "-i", "vm")
    world.run("prlctl", "start", "vm")
    assert "stopped" in world.run("prlctl", "set", "vm", "--efi-secure-boot", "off", code=1)
    first = Shell(world)
    first.until("Security Violation")
    first.sock.close()
    world.run("prlctl", "stop", "vm", "--kill")
    world.run("prlctl", "set", "vm", "--efi-secure-boot", "off")
    second = shell(world)
    second.sock.close()
    world.run("prlctl", "stop", "vm", "--kill")


def shell(world: World) -> Shell:
    world.run("prlctl", "start", "vm")
    found = Shell(world)
    found.reached()
    return found


def test_variables_are_kept(world: World) -> None:
    world.run("prlctl", "create", "vm", "--vmtype", "vm")
    world.run("prlctl", "set", "vm", "--efi-boot", "on", "--memsize", "256")

    def value(at: Shell) -> str:
        return at.run(f"setvar pyvz -guid {VENDOR}")

    first = shell(world)
    first.run(f"setvar pyvz -guid {VENDOR} -nv -bs =0x2a")
    assert "2A" in value(first)
    first.sock.close()
    world.run("prlctl", "stop", "vm", "--kill")
    world.run("prlctl", "snapshot", "vm", "--name", "kept")
    second = shell(world)
    assert "2A" in value(second)
    second.run(f"setvar pyvz -guid {VENDOR} -nv -bs =0x3b")
    second.sock.close()
    world.run("prlctl", "stop", "vm", "--kill")
    world.run("prlctl", "clone", "vm", "--name", "copy")
    world.run("prlctl", "snapshot-switch", "vm")
    third = shell(world)
    assert "2A" in value(third)
    third.sock.close()
    world.run("prlctl", "delete", "vm", "--force")
    world.run("prlctl", "set", "copy", "--name", "vm")
    last = shell(world)
    assert "3B" in value(last)
    last.sock.close()
