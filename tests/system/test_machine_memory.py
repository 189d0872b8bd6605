"""Virtual machines and the memory manager: promises, the balloon, and what a guest tells."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from pyvz.store.paths import Paths
from realnode import world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img"),
    pytest.mark.long,
    pytest.mark.timeout(1200),
]


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def stats(guest: Guest) -> dict[str, int]:
    text = guest.world.run("vcmmdctl", "stats", guest.home.name)
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", text)}


def test_machines_are_managed(guest: Guest) -> None:
    guest.prlctl("set", "vm1", "--memguarantee", "50")
    guest.start()
    uuid = guest.home.name

    def listed() -> str:
        return next(row for row in guest.world.run("vcmmdctl", "list").splitlines() if uuid in row)

    assert "VM" in listed()
    before = listed()
    until(lambda: stats(guest)["memavail"] > 0)  # by the guest's own word
    assert 0 < stats(guest)["memfree"] < 192 << 20
    flags = Path(f"/proc/{guest.qemu}/smaps").read_text()
    assert re.search(r"VmFlags:.* mg", flags)  # KSM may merge its memory
    # A policy's ceiling moves the balloon, but never below what the guest needs.
    guest.world.run("vcmmdctl", "update", uuid, "--limit", "160M")
    guest.until('awk \'/MemTotal/ {print ($2 < 160000) ? "less" : "more"}\' /proc/meminfo', "less")
    guest.world.run("vcmmdctl", "update", uuid, "--limit", "1G", code=1)
    guest.kill_vzd()
    assert listed().split()[:3] == before.split()[:3]
    assert guest.status == "running"
    guest.prlctl("stop", "vm1", "--kill")
    assert uuid not in guest.world.run("vcmmdctl", "list")
    guest.prlctl("set", "vm1", "--memsize", "4096G", "--memguarantee", "100")
    assert "guarantee" in guest.prlctl("start", "vm1", code=255)
    assert not list((Paths(guest.world.root).run / "vm").iterdir())
