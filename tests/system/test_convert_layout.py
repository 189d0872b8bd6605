"""`prlctl convert --layout`, and what a container sees of the disks of the node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import World

from images import busybox_root, busybox_tar
from places import file_system
from ploops import take_down
from pyvz.linux import loopdevice

__all__ = ["busybox_root", "busybox_tar"]

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")]
SIZE = "512M"


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    with file_system("xfs", short_root / "n", 3 << 30) as root:
        made = World(root)
        cache = root / "vz/template/cache"
        cache.mkdir(parents=True)
        shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
        yield made
        made.end()
        take_down(root)


def create(world: World, name: str, layout: str) -> None:
    words = ["--ostemplate", "busybox-1", "--layout", layout]
    words += [] if layout == "simfs" else ["--diskspace", SIZE]
    world.run("vzctl", "create", name, *words)


def home(world: World, name: str) -> Path:
    return Path(world.run("prlctl", "list", "-a", "-H", "-o", "uuid", name).strip().strip("{}"))


def test_one_layout_after_the_other(world: World) -> None:
    """The same files each time, nothing left of the former disk; refused where it would lose."""
    create(world, "ct1", "ploop")
    world.run("prlctl", "start", "ct1")
    world.run("prlctl", "exec", "ct1", "echo kept > /file; chown 12:34 /file; ln -s file /link")
    said = world.run("prlctl", "convert", "ct1", "--layout", "simfs", code=255)
    assert "running" in said
    world.run("prlctl", "stop", "ct1", "--kill")
    shot = world.run("prlctl", "snapshot", "ct1").split("{")[1].split("}")[0]
    said = world.run("prlctl", "convert", "ct1", "--layout", "rawfile", code=255)
    assert "snapshots" in said
    world.run("prlctl", "snapshot-delete", "ct1", "-i", shot)
    world.run("prlctl", "convert", "ct1", "--layout", "nosuch", code=255)
    uuid = os.fspath(home(world, "ct1"))
    (place,) = [path.parent for path in (world.root / "vz").rglob("ve.conf") if uuid in str(path)]
    for layout, name, number in (
        ("simfs", "fs", 4),
        ("qcow2", "qcow2", 104),
        ("rawfile", "raw", 103),
        ("ploop", "root.hdd", 5),
    ):
        world.run("prlctl", "convert", "ct1", "--layout", layout)
        assert os.readlink(place / ".ve.layout") == str(number)
        disks = {"fs", "qcow2", "raw", "root.hdd"} & set(os.listdir(place))
        assert len(disks) == 1, (layout, os.listdir(place))
        assert name in disks
        assert not [entry for entry in os.listdir(place) if entry.startswith(".convert")]
        world.run("prlctl", "convert", "ct1", "--layout", layout)  # there already
        world.run("prlctl", "mount", "ct1")
        root = world.root / "vz/root" / uuid
        assert (root / "file").read_text() == "kept\n"
        assert ((root / "file").stat().st_uid, (root / "file").stat().st_gid) == (12, 34)
        assert os.readlink(root / "link") == "file"
        world.run("prlctl", "umount", "ct1")
    world.run("prlctl", "start", "ct1")
    assert world.run("prlctl", "exec", "ct1", "cat /link") == "kept\n"


def test_what_is_seen_inside(world: World) -> None:
    """df and du tell the container's own; no device of a neighbour, no path of the node."""
    for name in ("ct1", "ct2"):
        create(world, name, "ploop")
        world.run("prlctl", "start", name)
    devices = {path.name for path in loopdevice.below(world.root.resolve())}
    assert len(devices) >= 2

    def sh(text: str) -> str:
        return world.run("prlctl", "exec", "ct1", text)

    total, used, free = map(int, sh("df -k / | tail -1").split()[1:4])
    assert 0.8 * (512 << 10) < total <= 512 << 10
    assert used + free <= total
    sh("dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null; sync")
    assert int(sh("df -k / | tail -1").split()[2]) >= used + (40 << 10)
    assert int(sh("du -sk /big").split()[0]) >= 40 << 10
    for listing in ("ls /sys/block", "ls /sys/class/block", "ls /sys/dev/block"):
        assert sh(f"{listing} 2>/dev/null; true") == ""  # what lsblk reads
    for table in ("/proc/partitions", "/proc/diskstats"):
        assert sh(f"cat {table}") == ""
    assert sh("ls /dev | grep -c loop; true").strip() == "0"
    own = sh("grep ' / ' /proc/mounts").split()[0]
    seen = sh("cat /proc/self/mountinfo /proc/mounts")
    assert os.fspath(world.root) not in seen
    others = devices - {own.removeprefix("/dev/")}
    assert not [name for name in others if f"/dev/{name} " in seen]
