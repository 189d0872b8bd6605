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
