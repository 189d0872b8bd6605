"""A machine whose memory is never swapped out: locked, or refused where that much may not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.errors import NotEnoughResources
from pyvz.units import KIB, MIB
from pyvz.vm import memorylock
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
MEMORY = 64  # MiB


def may_lock() -> bool:
    try:
        memorylock.limit(MEMORY * MIB)
    except NotEnoughResources:
        return False
    return True


def test_memory_is_locked(world: World) -> None:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    words = ("--memsize", str(MEMORY), "--mem-hotplug", "off", "--memory-lock", "yes")
    world.run("prlctl", "set", "vm1", *words)
    assert " locked" in world.run("prlctl", "list", "-i", "vm1")
    if not may_lock():
        refused = world.run("prlctl", "start", "vm1", code=255)
        assert "RLIMIT_MEMLOCK" in refused
        assert "stopped" in world.run("prlctl", "status", "vm1")
        world.run("prlctl", "set", "vm1", "--memory-lock", "no")
    world.run("prlctl", "start", "vm1")
    path = next((world.root / "run/pyvz/vm").glob("*/process.json"))
    status = Path(f"/proc/{json.loads(path.read_text())['pid']}/status").read_text()
    found = re.search(r"^VmLck:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    assert (int(found[1]) * KIB >= MEMORY * MIB) == may_lock()
    world.run("prlctl", "stop", "vm1", "--kill")
