"""Backups of virtual machines: whole and incremental, stopped and while a guest writes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from test_machine_mount import disk

from bundles import MIB, check, digest, got, made, put, write_inside
from images import busybox_root, busybox_tar
from machineguest import Guest
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = pytest.mark.requires(
    "root", "loop", "program:qemu-system-x86_64", "program:qemu-storage-daemon", "program:mke2fs"
)


def backup(world: World, *options: str) -> str:
    """Back vm1 up; returns the backup's id."""
    out = world.run("prlctl", "backup", "vm1", *options)
    found = re.search(r"\{[0-9a-f-]{36}\}(\.\d+)?", out)
    assert found, out
    return found[0]


def sizes(world: World) -> list[tuple[str, int]]:
    """The type and the size of every backup of vm1."""
    rows = world.run("prlctl", "backup-list", "vm1").splitlines()[1:]
    return [(row.split()[-2], int(row.split()[-1])) for row in rows]


def home_of(world: World, name: str) -> Path:
    info = world.run("prlctl", "list", "-i", name)
    return next(p for p in (world.root / "vz/vmprivate").iterdir() if p.name in info)


def test_stopped(world: World, tmp_path: Path) -> None:
    """Full, incremental by its bitmap, checked, shown, and brought back in three ways."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    home = next((world.root / "vz/vmprivate").iterdir())
    root = world.root / "vz/root" / home.name
    disk(home / "harddisk.hdd", tmp_path)
    full = backup(world)
    world.run("prlctl", "mount", "vm1", "-o", "rw")
    (root / "new").write_bytes(os.urandom(300_000))
    world.run("prlctl", "umount", "vm1")
    second = backup(world)
    assert second == f"{full}.2"
    (first_kind, first), (second_kind, later) = sizes(world)
    assert (first_kind, second_kind) == ("f", "i")
    assert later < first / 4
    assert "all is read" not in log(world)
    assert not (home / ".backup").exists()
    world.run("prlctl", "backup-verify", "vm1")
    world.run("prlctl", "start", "vm1")  # no guest boots, and QEMU runs
    third = backup(world)
    world.run("prlctl", "stop", "vm1", "--kill")
    assert sizes(world)[-1] == ("i", 0)
    assert "all is read" not in log(world)
    world.run("prlctl", "backup-delete", "-t", third)

    world.run("prlctl", "backup-mount", "-t", second, "--dst", str(tmp_path / "shown"))
    assert (tmp_path / "shown/new").stat().st_size == 300_000
    world.run("prlctl", "backup-umount", "-t", second)

    world.run("prlctl", "restore", "-t", full, "-n", "old")
    world.run("prlctl", "mount", "old")
    old = world.root / "vz/root" / home_of(world, "old").name
    assert (old / "hello").read_text() == "from inside\n"
    assert not (old / "new").exists()
    world.run("prlctl", "umount", "old")

    world.run("prlctl", "restore", "vm1")  # in place
    world.run("prlctl", "delete", "vm1")
    world.run("prlctl", "restore", "-t", second)
    world.run("prlctl", "mount", "vm1")
    assert (root / "new").stat().st_size == 300_000
    world.run("prlctl", "umount", "vm1")


def test_a_bundle(world: World) -> None:
    """A ploop disk: what changed is known while one QEMU lives; it comes back as one."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
    home = next((world.root / "vz/vmprivate").iterdir())
    own = made(world.run, home / "own.hdd")
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(own))
    full, first = backup(world), digest(own)
    put(own, os.urandom(MIB), 8 * MIB)
    backup(world)
    world.run("prlctl", "start", "vm1")
    backup(world)
    assert log(world).count("all is read") == 1  # nobody has looked while it did not run
    world.kill_vzd()
    write_inside(world.root, home.name, "hdd0", "write -q -P 7 4M 64k")
    last = backup(world)
    assert log(world).count("all is read") == 1
    (kind, whole), *rest = sizes(world)
    assert [kind, *(each for each, _ in rest)] == ["f", "i", "i", "i"]
    assert [MIB < whole < 3 * MIB, MIB // 2 < rest[0][1] < 2 * MIB] == [True, True]
    assert [rest[1][1], rest[2][1] < MIB // 4] == [0, True]
    world.run("prlctl", "backup-verify", "vm1")
    world.kill_vzd()
    write_inside(world.root, home.name, "hdd0", "write -q -P 8 0 64k")
    world.run("prlctl", "stop", "vm1", "--kill")

    world.run("prlctl", "restore", "-t", last, "-n", "copy")
    copy = home_of(world, "copy") / "own.hdd"
    check(world.run, copy)
    assert got(own, 64 << 10) == b"\x08" * (64 << 10)
    put(own, got(copy, 64 << 10))
    assert digest(copy) == digest(own)
    assert got(copy, 64 << 10, 4 * MIB) == b"\x07" * (64 << 10)
    world.run("prlctl", "start", "copy")
    world.run("prlctl", "stop", "copy", "--kill")
    world.run("prlctl", "restore", "-t", full)  # in place
    check(world.run, own)
    assert digest(own) == first


@pytest.mark.long
def test_a_guest_writes(world: World, tiny_iso: Path) -> None:
    """What a guest wrote up to the moment is there, and nothing that it wrote later."""
    guest = Guest(world, tiny_iso)
    guest.prlctl("set", "vm1", "--device-del", "hdd0", "--destroy-image-force")
    guest.prlctl("set", "vm1", "--device-add", "hdd", "--size", "48M")
    guest.start()
    guest.inside("dd if=/dev/urandom of=/dev/sda bs=1M count=8 conv=fsync 2>/dev/null")
    backup(world)
    guest.inside("dd if=/dev/urandom of=/dev/sda bs=64k seek=200 count=4 conv=fsync 2>/dev/null")
    wanted = guest.inside("md5sum </dev/sda").split()[0]
    tag = backup(world)
    guest.inside("dd if=/dev/zero of=/dev/sda bs=1M count=8 conv=fsync 2>/dev/null")
    (_, first), (kind, second) = sizes(world)
    assert (kind, second < first / 4) == ("i", True)
    assert "all is read" not in log(world)
    home = home_of(world, "vm1")
    assert not (home / ".backup").exists()
    world.run("prlctl", "restore", "-t", tag, "-n", "copy")
    assert md5(home_of(world, "copy")) == wanted
    # a snapshot that is gone back to makes the next one read everything
    guest.prlctl("stop", "vm1", "--kill")
    world.run("prlctl", "snapshot", "vm1", "-n", "one")
    guest.prlctl("snapshot-switch", "vm1", "-i", snapshot(world))
    third = backup(world)
    world.run("prlctl", "restore", "-t", third, "-n", "other")
    assert md5(home_of(world, "other")) == md5(home)


def log(world: World) -> str:
    return "".join(path.read_text() for path in (world.root / "var/log").rglob("*.log"))


def snapshot(world: World) -> str:
    found = re.search(r"\{[0-9a-f-]{36}\}", world.run("prlctl", "snapshot-list", "vm1"))
    assert found
    return found[0]


def md5(home: Path) -> str:
    """The sum of a machine's disk as its guest sees it."""
    image = next(home.glob("*.hdd"))
    raw = home / "raw"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", image, raw], check=True)
    try:
        return hashlib.md5(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()
