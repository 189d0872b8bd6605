"""Disks of a machine that does not run: of clones, and of snapshots."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-img")


@pytest.fixture
def outside(world: World, tmp_path: Path) -> Path:
    """A machine whose second disk is not in its home; that disk."""
    path = tmp_path / "data.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(path))
    world.run("prlctl", "set", "vm1", "--device-bootorder", "hdd1 hdd0")
    return path


def image(world: World, name: str, disk: str) -> str:
    told = world.run("prlctl", "list", "-i", name)
    found = re.search(rf"  {disk} .* image='([^']*)'", told)
    return found[1] if found else ""


def test_clones_of_a_machine_with_a_disk_elsewhere(world: World, outside: Path) -> None:
    """A copy of the disk, or none; a linked clone cannot stand on it."""
    assert image(world, "vm1", "hdd1") == os.fspath(outside)
    world.run("prlctl", "clone", "vm1", "--name", "vm2")
    copy = Path(image(world, "vm2", "hdd1"))
    assert copy.parent == Path(image(world, "vm2", "hdd0")).parent
    assert copy.exists()
    words = ("--detach-external-hdd", "yes")
    world.run("prlctl", "clone", "vm1", "--name", "vm3", *words)
    assert not image(world, "vm3", "hdd1")
    assert "Boot order: hdd0 \n" in world.run("prlctl", "list", "-i", "vm3")
    world.run("prlctl", "clone", "vm1", "--name", "vm4", "--detach-external-hdd", "?", code=1)
    world.run("prlctl", "set", "vm1", "--template", "yes")
    told = world.run("prlctl", "clone", "vm1", "--name", "vm4", "--linked", code=255)
    assert "not in the home" in told
    world.run("prlctl", "clone", "vm1", "--name", "vm4", "--linked", *words)
    assert "already" in world.run("prlctl", "create", "vm4", "--vmtype", "vm", code=255)
    assert outside.exists()


def test_a_snapshot_whose_disk_is_gone(world: World, outside: Path) -> None:
    """It is refused before anything happens, and the machine stays usable."""
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--size", "1M")
    said = world.run("prlctl", "snapshot", "vm1", "--name", "first")
    guid = re.search(r"{.*}", said)[0]  # type: ignore[index]
    destroy = ("--device-del", "hdd2", "--destroy-image")
    assert "part of snapshots" in world.run("prlctl", "set", "vm1", *destroy, code=255)
    world.run("prlctl", "set", "vm1", "--device-del", "hdd2", "--destroy-image-force")
    told = world.run("prlctl", "snapshot-switch", "vm1", "--id", guid, code=255)
    assert "hdd2 cannot be put back" in told
    assert not image(world, "vm1", "hdd2")
    # One that came later cannot be in a snapshot, which is no reason to keep those of others.
    raw = outside.with_name("raw.img")
    raw.write_bytes(bytes(1 << 20))
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(raw))
    assert "no qcow2 image" in world.run("prlctl", "snapshot", "vm1", code=255)
    world.run("prlctl", "snapshot-delete", "vm1", "--id", guid)
    states = subprocess.run(
        ["qemu-img", "snapshot", "-l", outside], check=True, capture_output=True, text=True
    )
    assert guid.strip("{}") not in states.stdout
    world.run("prlctl", "delete", "vm1")


@pytest.mark.requires("program:qemu-system-x86_64")
def test_the_memory_of_a_machine_whose_disk_is_encrypted(world: World) -> None:
    """It is kept beside the disk: QEMU ends when it is to write it into such an image."""
    keys = world.root / "etc/vz/keys"
    keys.mkdir(mode=0o700, parents=True)
    (keys / "key").write_text("a long word that nobody knows\n")
    (keys / "key").chmod(0o600)
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "--encryption-keyid", "key")
    world.run("prlctl", "set", "vm1", "--memsize", "64", "--cpus", "1")
    for disks in (1, 2):
        world.run("prlctl", "start", "vm1")
        said = world.run("prlctl", "snapshot", "vm1")
        guid = re.search(r"{(.*)}", said)[1]  # type: ignore[index]
        apart = list(world.root.glob(f"vz/vmprivate/*/snapshots/{guid}.memory"))
        assert len(apart) == (disks == 1)
        assert "running" in world.run("prlctl", "status", "vm1")
        world.run("prlctl", "stop", "vm1", "--kill")
        world.run("prlctl", "snapshot-switch", "vm1", "--id", guid)
        assert "running" in world.run("prlctl", "status", "vm1")
        world.run("prlctl", "snapshot-delete", "vm1", "--id", guid)
        world.run("prlctl", "stop", "vm1", "--kill")
        world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--size", "16M")
    assert not list(world.root.glob("vz/vmprivate/*/snapshots/*"))
