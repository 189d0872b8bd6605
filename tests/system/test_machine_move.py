"""The home of a virtual machine goes to another place of the node; no guest is needed for that."""

from __future__ import annotations

import os
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
    """While it runs on one file system; suspended and stopped to another."""

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
    assert "another file system" in prlctl("move", "vm1", "--dst", os.fspath(elsewhere), code=255)

    prlctl("suspend", "vm1")
    prlctl("move", "vm1", "--dst", os.fspath(elsewhere))
    assert prlctl("status", "vm1").split()[-1] == "suspended"
    prlctl("resume", "vm1")
    assert prlctl("status", "vm1").split()[-1] == "running"
    prlctl("stop", "vm1", "--kill")
    prlctl("move", "vm1", "--dst", os.fspath(world.root / "vz/vmprivate"))
    assert (home / "harddisk.hdd").exists()
    assert not list(elsewhere.iterdir())
