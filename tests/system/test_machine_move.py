"""The home of a virtual machine goes to another place of the node; no guest is needed for that."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.linux import mount
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:qemu-system-x86_64", "program:qemu-img")


@pytest.fixture
def elsewhere(world: World) -> Iterator[Path]:
    """A directory on another file system."""
    place = world.root / "vz/ram"
    place.mkdir()
    mount.mount("ram", place, "tmpfs")
    yield place
    mount.umount(place)


def test_move(world: World, elsewhere: Path) -> None:
    """Renamed while it runs, on one file system; mirrored to another; suspended and stopped."""

    def prlctl(*words: str, code: int = 0) -> str:
        return world.run("prlctl", *words, code=code)

    prlctl("create", "vm1", "--vmtype", "vm", "-d", "debian")
    prlctl("set", "vm1", "--memsize", "64", "--cpus", "1")
    home = next((world.root / "vz/vmprivate").iterdir())
    beside = world.root / "vz/other"
    prlctl("start", "vm1")
    prlctl("move", "vm1", "--dst", os.fspath(beside))
    assert prlctl("status", "vm1").split()[-1] == "running"
    assert (beside / home.name / "harddisk.hdd").exists()
    assert not home.exists()
    prlctl("move", "vm1", "--dst", os.fspath(elsewhere))
    assert prlctl("status", "vm1").split()[-1] == "running"
    assert (elsewhere / home.name / "harddisk.hdd").exists()
    assert not list(beside.iterdir())
    tiny = world.root / "vz/tiny"
    tiny.mkdir()
    mount.mount("tiny", tiny, "tmpfs", data="size=64k")
    try:
        assert "space" in prlctl("move", "vm1", "--dst", os.fspath(tiny), code=255)
        assert not list(tiny.iterdir())
    finally:
        mount.umount(tiny)
    assert prlctl("status", "vm1").split()[-1] == "running"

    prlctl("suspend", "vm1")
    prlctl("move", "vm1", "--dst", os.fspath(beside))
    assert prlctl("status", "vm1").split()[-1] == "suspended"
    prlctl("resume", "vm1")
    assert prlctl("status", "vm1").split()[-1] == "running"
    prlctl("stop", "vm1", "--kill")
    prlctl("move", "vm1", "--dst", os.fspath(world.root / "vz/vmprivate"))
    assert (home / "harddisk.hdd").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_vzd_dies_while_it_moves(world: World, elsewhere: Path) -> None:
    """It is at one place, runs or is suspended, and nothing is left of the other."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "64", "--cpus", "1")
    places = [world.root / "vz/vmprivate", elsewhere]
    for delay in (0.2, 0.5, 0.8, 1.2, 1.6, 2.0):
        world.run("prlctl", "start", "vm1")
        here = next(place for place in places if list(place.iterdir()))
        there = next(place for place in places if place != here)
        argv = world.argv("prlctl", "move", "vm1", "--dst", os.fspath(there))
        child = subprocess.Popen(
            argv, env=world.env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        world.kill_vzd()
        child.wait(200)
        state = world.run("prlctl", "status", "vm1").split()[-1]
        assert state in {"running", "suspended"}, delay
        world.run("prlctl", "set", "vm1", "--description", "repaired")
        assert len([entry for place in places for entry in place.iterdir()]) == 1, delay
        assert not list((world.root / "var/lib/pyvz/journal").iterdir()), delay
        if state == "suspended":
            world.run("prlctl", "resume", "vm1")
        world.run("prlctl", "stop", "vm1", "--kill")
        print(f"after {delay} s: {state}")
