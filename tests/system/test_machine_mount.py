"""The disk of a virtual machine, mounted on the node; no guest is needed for that."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.linux.mount import mount_at
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires(
    "root", "loop", "program:qemu-system-x86_64", "program:qemu-storage-daemon", "program:mke2fs"
)
OFFSET = 1 << 20


def disk(target: Path, work: Path) -> None:
    """Make a qcow2 disk: an MBR, and one ext4 partition with a file, a device and a program."""
    tree = work / "tree"
    tree.mkdir()
    (tree / "hello").write_text("from inside\n")
    (tree / "bulk").write_bytes(os.urandom(2 << 20))
    shutil.copy("/bin/true", tree / "true")
    raw = work / "raw"
    raw.touch()
    os.truncate(raw, 40 << 20)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", f"offset={OFFSET}", raw, "38M"],
        check=True,
        capture_output=True,
    )
    with raw.open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3xB3xII", 0x80, 0x83, OFFSET // 512, (39 << 20) // 512))
        file.seek(510)
        file.write(b"\x55\xaa")
    target.unlink()
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, target], check=True)


def test_mount(world: World, tmp_path: Path) -> None:
    """Read-only and without devices unless asked; vzd may die; nothing is left behind."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    home = next((world.root / "vz/vmprivate").iterdir())
    root = world.root / "vz/root" / home.name
    disk(home / "harddisk.hdd", tmp_path)

    world.run("prlctl", "mount", "vm1")
    assert world.run("prlctl", "status", "vm1").split()[-1] == "mounted"
    found = mount_at(root)
    assert found is not None
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(found.options)
    assert (root / "hello").read_text() == "from inside\n"
    with pytest.raises(PermissionError):
        subprocess.run([root / "true"], check=True)
    assert "mounted" in world.run("prlctl", "start", "vm1", code=255)
    assert "mounted" in world.run("prlctl", "mount", "vm1", code=255)

    os.kill(int((world.root / "run/pyvz/vzd.lock").read_text()), signal.SIGKILL)
    assert (root / "hello").read_text() == "from inside\n"
    world.run("prlctl", "umount", "vm1")
    assert not root.exists()

    world.run("prlctl", "mount", "vm1", "-o", "rw")
    (root / "written").write_text("by the node\n")
    world.run("prlctl", "umount", "vm1")
    world.run("prlctl", "mount", "vm1")
    assert (root / "written").read_text() == "by the node\n"
    world.run("prlctl", "umount", "vm1")
    assert not list((world.root / "run/pyvz/vm-mount").iterdir())


def test_a_disk_without_a_file_system_is_told(world: World) -> None:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    assert "No file system" in world.run("prlctl", "mount", "vm1", code=255)
    assert world.run("prlctl", "status", "vm1").split()[-1] == "stopped"
    assert not list((world.root / "run/pyvz/vm-mount").iterdir())
