"""True figures inside, by the real programs: vzd runs lxcfs, and both may be killed."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:lxcfs")
DEADLINE = 60.0


def daemon(world: World) -> tuple[int, int]:
    pid, started = (world.root / "run/pyvz/lxcfs/daemon").read_text().split()
    return int(pid), int(started)


def total(world: World, name: str) -> int | None:
    """MemTotal inside, in MiB; None when it cannot be read."""
    text = world.run("prlctl", "exec", name, "cat /proc/meminfo 2>/dev/null; true")
    found = re.search(r"MemTotal:\s+(\d+) kB", text)
    return int(found[1]) // 1024 if found else None


def await_total(world: World, name: str, wanted: int) -> None:
    end = time.monotonic() + DEADLINE
    while total(world, name) != wanted:
        assert time.monotonic() < end, total(world, name)
        time.sleep(0.2)


def test_figures_live_on_whatever_dies(world: World) -> None:
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    world.run("prlctl", "set", "web", "--memsize", "96")
    world.run("prlctl", "start", "web")
    assert total(world, "web") == 96
    world.run("prlctl", "set", "web", "--memsize", "128")
    assert total(world, "web") == 128

    first = daemon(world)
    os.kill(first[0], signal.SIGKILL)
    await_total(world, "web", 128)
    second = daemon(world)
    assert second != first

    os.kill(int((world.root / "run/pyvz/vzd.lock").read_text()), signal.SIGKILL)
    os.kill(second[0], signal.SIGSTOP)  # hung, and nobody there to notice
    world.run("prlctl", "list")  # starts the next vzd
    await_total(world, "web", 128)
    assert daemon(world) != second

    world.run("prlctl", "create", "raw", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
    world.run("prlctl", "set", "raw", "--memsize", "96", "--features", "lxcfs:off")
    world.run("prlctl", "start", "raw")
    node = Path("/proc/meminfo").read_text().split()[1]
    assert total(world, "raw") == int(node) // 1024
