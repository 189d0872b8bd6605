"""The home of a virtual machine goes to another place of the node; no guest is needed for that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from bundles import MIB, check, digest, made, put
from images import busybox_root, busybox_tar
from pyvz.linux import mount
from realnode import World, end, world

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
    """It is at one place, runs or is suspended, and nothing is left of the other.

    So it is when its QEMU dies.
    """
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "64", "--cpus", "1")
    places = [world.root / "vz/vmprivate", elsewhere]
    bundle = made(world.run, next(places[0].iterdir()) / "own.hdd", 80, 64)
    wanted = digest(bundle)
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(bundle))
    for dies, delay in product((_vzd, _qemu), (0.2, 0.5, 0.8, 1.2, 1.6, 2.0)):
        world.run("prlctl", "start", "vm1")
        here = next(place for place in places if list(place.iterdir()))
        there = next(place for place in places if place != here)
        argv = world.argv("prlctl", "move", "vm1", "--dst", os.fspath(there))
        child = subprocess.Popen(
            argv, env=world.env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        dies(world)
        child.wait(200)
        state = world.run("prlctl", "status", "vm1").split()[-1]
        assert state in {"running", "suspended"} | ({"stopped"} if dies is _qemu else set()), delay
        world.run("prlctl", "set", "vm1", "--description", "repaired")
        assert len([entry for place in places for entry in place.iterdir()]) == 1, delay
        assert not list((world.root / "var/lib/pyvz/journal").iterdir()), delay
        if state == "suspended":
            world.run("prlctl", "resume", "vm1")
        world.run("prlctl", "stop", "vm1", "--kill")
        bundle = next(each for place in places for each in place.glob("*/own.hdd"))
        check(world.run, bundle)
        assert digest(bundle) == wanted
        print(f"after {delay} s: {state}")


def _vzd(world: World) -> None:
    world.kill_vzd()


def _qemu(world: World) -> None:
    for path in (world.root / "run/pyvz/vm").glob("*/process.json"):
        with contextlib.suppress(ProcessLookupError):
            end(int(json.loads(path.read_text())["pid"]), signal.SIGKILL)


def first_snapshot(world: World, name: str) -> str:
    """The first snapshot of a machine."""
    found = re.search(r"\{[0-9a-f-]{36}\}", world.run("prlctl", "snapshot-list", name))
    assert found
    return found[0]


def test_move_a_bundle(world: World, elsewhere: Path) -> None:
    """A ploop disk: mirrored while it runs, with its snapshots; copied when it stands still."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
    world.run("prlctl", "set", "vm1", "--memsize", "64", "--cpus", "1")
    home = next((world.root / "vz/vmprivate").iterdir())
    disk = made(world.run, home / "root.hdd")  # as a container's is called
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(disk))
    world.run("prlctl", "snapshot", "vm1", "-n", "stopped")
    first, moved = digest(disk), elsewhere / home.name / disk.name
    put(disk, os.urandom(MIB), 5 * MIB)
    second = digest(disk)
    world.run("prlctl", "start", "vm1")
    world.run("prlctl", "snapshot", "vm1", "-n", "running")
    tiny = world.root / "vz/tiny"
    tiny.mkdir()
    mount.mount("tiny", tiny, "tmpfs", data="size=8m")
    try:  # the snapshots and a part of the disk fit in
        assert "space" in world.run("prlctl", "move", "vm1", "--dst", os.fspath(tiny), code=255)
        assert not list(tiny.iterdir())
    finally:
        mount.umount(tiny)
    world.run("prlctl", "move", "vm1", "--dst", os.fspath(elsewhere))
    assert world.run("prlctl", "status", "vm1").split()[-1] == "running"
    assert not home.exists()
    assert digest(moved) == second
    world.run("prlctl", "stop", "vm1", "--kill")
    check(world.run, moved)
    world.run("prlctl", "move", "vm1", "--dst", os.fspath(home.parent))
    check(world.run, disk)
    assert not list(elsewhere.iterdir())
    world.run("prlctl", "snapshot-switch", "vm1", "-i", first_snapshot(world, "vm1"))
    assert digest(disk) == first
