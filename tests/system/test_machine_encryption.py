"""Encrypted disks of virtual machines: keys of the node's store, which appear nowhere else."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from test_machine_backup import backup, disk

import leaks
from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
KEY = "correct horse battery"


def keep(world: World, name: str, text: str, mode: int = 0o600) -> None:
    path = world.root / "etc/vz/keys" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text + "\n")
    path.chmod(mode)


def disks(world: World) -> dict[str, int]:
    """The method of encryption of each image."""
    found = (world.root / "vz/vmprivate").glob("*/*.hdd")
    return {path.name: struct.unpack(">I", path.read_bytes()[32:36])[0] for path in found}


def qemu(world: World) -> int:
    path = next((world.root / "run/pyvz/vm").glob("*/process.json"))
    return int(json.loads(path.read_text())["pid"])


@pytest.mark.long
def test_encrypted_disks(world: World, tmp_path: Path) -> None:
    prlctl = partial(world.run, "prlctl")

    create = ("create", "vm", "--vmtype", "vm", "--encryption-keyid", "k")
    assert "no key 'k'" in prlctl(*create, code=255)
    keep(world, "k", KEY, 0o644)
    assert "only root" in prlctl(*create, code=255)
    keep(world, "k", KEY)
    keep(world, "other", "another one")
    prlctl(*create)
    assert disks(world) == {"harddisk.hdd": 2}
    assert "keyid='k'" in prlctl("list", "-i", "vm")
    prlctl("snapshot", "vm", "--name", "first")
    prlctl("start", "vm")
    words = Path(f"/proc/{qemu(world)}/cmdline").read_bytes()
    assert b"luks" in words
    assert KEY.encode() not in words
    add = ("set", "vm", "--device-add", "hdd", "--size", "16M")
    prlctl(*add, "--encryption-keyid", "other")  # plugged in while it runs
    assert "stop" in prlctl("set", "vm", "--device-set", "hdd0", "--decrypt", code=255).lower()
    prlctl("stop", "vm", "--kill")
    prlctl("set", "vm", "--device-set", "hdd1", "--size", "32M")
    prlctl("clone", "vm", "--name", "copy")
    prlctl("start", "copy")
    prlctl("delete", "copy", "--force")
    keep(world, "k", "no longer the same")
    assert "does not open it" in prlctl("start", "vm", code=255)
    keep(world, "k", KEY)
    assert "snapshots" in prlctl("set", "vm", "--device-set", "hdd0", "--decrypt", code=255)
    guid = prlctl("snapshot-list", "vm", "-H").split()[-1].strip("*")
    prlctl("snapshot-delete", "vm", "--id", guid)
    coding(world, prlctl)
    logs = [path.read_bytes() for path in (world.root / "var/log").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in logs)
    plain = tmp_path / "plain"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", plain, "1M"], check=True)
    wrong = ("--image", os.fspath(plain), "--encryption-keyid", "k")
    assert "not encrypted" in prlctl("set", "vm", "--device-add", "hdd", *wrong, code=255)


def coding(world: World, prlctl: Callable[..., str]) -> None:
    prlctl("set", "vm", "--device-set", "hdd0", "--decrypt")
    assert disks(world) == {"harddisk-1.hdd": 0, "harddisk1.hdd": 2}
    assert "needs" in prlctl("set", "vm", "--device-set", "hdd0", "--encrypt", code=1)
    prlctl("set", "vm", "--device-set", "hdd0", "--encrypt", "--encryption-keyid", "other")
    prlctl("set", "vm", "--device-set", "hdd0", "--reencrypt")
    assert sorted(disks(world).values()) == [2, 2]
    prlctl("start", "vm")
    prlctl("stop", "vm", "--kill")


@pytest.mark.long
def test_what_is_done_with_it_stopped(world: World, tmp_path: Path) -> None:
    """It is mounted with its key, and backed up as it lies there."""
    prlctl = partial(world.run, "prlctl")
    keep(world, "k", KEY)
    prlctl("create", "vm1", "--vmtype", "vm")
    home = next((world.root / "vz/vmprivate").iterdir())
    root = world.root / "vz/root" / home.name
    disk(home / "harddisk.hdd", tmp_path)
    prlctl("set", "vm1", "--device-set", "hdd0", "--encrypt", "--encryption-keyid", "k")
    prlctl("mount", "vm1", "-o", "rw")
    assert (root / "hello").read_text() == "from inside\n"
    (root / "new").write_text("as well\n")
    words = [leaks.command_line(int(each)) for each in os.listdir("/proc") if each.isdigit()]
    assert not any(KEY.encode() in text for text in words)
    prlctl("umount", "vm1")
    keep(world, "k", "another one")
    assert "did not start" in prlctl("mount", "vm1", code=255)
    keep(world, "k", KEY)
    tag = backup(world)
    assert backup(world) == f"{tag}.2"
    stored = [path for path in (world.root / "vz/vmprivate/backups").rglob("*") if path.is_file()]
    assert not any(b"as well" in path.read_bytes() for path in stored)
    shown = ("--dst", os.fspath(tmp_path / "shown"))
    assert "encrypted" in prlctl("backup-mount", "-t", tag, *shown, code=255)
    prlctl("restore", "-t", tag, "-n", "copy")
    prlctl("mount", "copy")
    mounted = [path for path in (world.root / "vz/root").iterdir() if (path / "new").exists()]
    assert [(path / "new").read_text() for path in mounted] == ["as well\n"]
    prlctl("umount", "copy")
    prlctl("start", "vm1")
    assert "prlctl suspend" in prlctl("backup", "vm1", code=255)
    prlctl("stop", "vm1", "--kill")
