"""A ploop disk, the `.hdd` bundle of the original, as the disk of a virtual machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from machineguest import Guest, guest
from realnode import world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "tiny_iso", "world"]
pytestmark = [
    pytest.mark.requires("root", "loop", "program:qemu-system-x86_64", "program:qemu-img"),
    pytest.mark.long,
    pytest.mark.timeout(1200),
]
SHOT = re.compile(r"with id (\{[^}]+\})")


def made(guest: Guest, path: Path) -> Path:
    """Make a disk of 64 MiB with nothing in it."""
    path.mkdir()
    guest.world.run("ploop", "init", "-s", "64M", "-t", "none", os.fspath(path / "root.hds"))
    return path


def test_a_bundle(guest: Guest, tmp_path: Path) -> None:
    """Beside a qcow2 disk: written to, grown, in a snapshot with memory; nobody else has it."""
    bundle = made(guest, tmp_path / "data.hdd")
    descriptor = os.fspath(bundle / "DiskDescriptor.xml")
    guest.prlctl("set", "vm1", "--device-add", "hdd", "--image", os.fspath(bundle), "--iface",
                 "virtio")  # fmt: skip
    guest.start()
    assert guest.inside("cat /sys/block/vda/size") == f"{64 << 11}\n"
    write(guest, "one")
    first = shot(guest)
    write(guest, "two")
    for words in (("mount", "-m", "/mnt"), ("snapshot",), ("check",)):
        told = guest.world.run("ploop", *words, descriptor, code=12)
        assert "belongs to vm1, which runs" in told
    hdd = ("--hdd", os.fspath(bundle))
    guest.world.run("prl_disk_tool", "resize", "--size", "96M", *hdd)
    guest.until("cat /sys/block/vda/size", str(96 << 11))
    assert "hdd1 (+) virtio:0" in guest.prlctl("list", "-i", "vm1")
    guest.prlctl("snapshot-switch", "vm1", "-i", first)
    assert read(guest) == ("one", str(64 << 11))
    guest.inside("dd if=/dev/urandom of=/dev/vda bs=1M seek=16 count=16 conv=fsync")
    taken = blocks(bundle)
    guest.inside("blkdiscard -o 16777216 -l 16777216 /dev/vda")
    assert blocks(bundle) < taken - (15 << 11)
    assert "successfully backed up" in guest.prlctl("backup", "vm1")
    guest.prlctl("snapshot-delete", "vm1", "-i", first)
    guest.prlctl("set", "vm1", "--device-del", "hdd1")
    guest.until("ls /sys/block | grep -c vda || true", "0")
    guest.world.run("ploop", "snapshot", descriptor)


def test_nothing_but_bundles(guest: Guest) -> None:
    """In the home, without a qcow2 disk: the memory of a snapshot is beside it."""
    guest.prlctl("set", "vm1", "--device-del", "hdd0", "--destroy-image")
    bundle = made(guest, guest.home / "own.hdd")
    guest.prlctl("set", "vm1", "--device-add", "hdd", "--image", os.fspath(bundle), "--iface",
                 "virtio")  # fmt: skip
    guest.start()
    write(guest, "one")
    first = shot(guest)
    write(guest, "two")
    second = shot(guest)
    assert len(list((guest.home / "snapshots").glob("*.memory"))) == 2
    guest.prlctl("snapshot-switch", "vm1", "-i", first)
    assert read(guest)[0] == "one"
    guest.kill_vzd()
    guest.prlctl("snapshot-switch", "vm1", "-i", second)
    assert read(guest)[0] == "two"
    guest.prlctl("pause", "vm1")
    assert "is paused" in guest.prlctl("snapshot", "vm1", code=255)
    guest.prlctl("start", "vm1")
    guest.prlctl("suspend", "vm1")
    guest.prlctl("resume", "vm1")
    assert read(guest)[0] == "two"
    guest.prlctl("snapshot-delete", "vm1", "-i", first, "--children")
    assert not list((guest.home / "snapshots").glob("*.memory"))
    assert len(list(bundle.glob("root.hds*"))) == 1
    guest.prlctl("stop", "vm1", "--kill")
    guest.prlctl("clone", "vm1", "--name", "vm2")
    guest.prlctl("start", "vm2")
    guest.prlctl("stop", "vm2", "--kill")
    guest.prlctl("set", "vm1", "--device-del", "hdd0", "--destroy-image")
    assert not bundle.exists()


def write(guest: Guest, word: str) -> None:
    """Have the disk and the memory hold WORD."""
    guest.inside(f"echo {word} >/root/mark; echo {word} | dd of=/dev/vda conv=fsync")


def read(guest: Guest) -> tuple[str, str]:
    """Return what disk and memory hold, which is the same, and the size of the disk in sectors."""
    guest.wait()
    command = "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda; cat /root/mark"
    disk, memory = guest.inside(command).split()
    assert disk == memory
    return disk, guest.inside("cat /sys/block/vda/size").strip()


def shot(guest: Guest) -> str:
    found = SHOT.search(guest.prlctl("snapshot", "vm1"))
    assert found
    return found[1]


def blocks(bundle: Path) -> int:
    return sum(path.stat().st_blocks for path in bundle.iterdir())
