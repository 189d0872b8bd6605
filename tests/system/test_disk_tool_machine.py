"""prl_disk_tool on the disks of virtual machines, and on images that are nobody's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from test_machine_mount import disk

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "loop", "program:qemu-img", "program:mke2fs")
MIB = 1 << 20


def info(image: Path) -> dict[str, object]:
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", image], check=True, capture_output=True, text=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def content(image: Path, work: Path) -> str:
    raw = work / "content.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    with raw.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    raw.unlink()
    return found


def test_of_a_machine(world: World, tmp_path: Path) -> None:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
    home = next((world.root / "vz/vmprivate").iterdir())
    image = home / "harddisk.hdd"
    image.touch()
    disk(image, tmp_path)
    world.run("prlctl", "set", "vm1", "--device-add", "hdd", "--image", os.fspath(image))
    hdd = ("--hdd", os.fspath(image))
    # Zeros that were written take space until it is compacted.
    command = ["qemu-io", "-c", "write -P 7 8M 16M", "-c", "write -P 0 8M 16M", image]
    subprocess.run(command, check=True, capture_output=True)
    before, taken = content(image, tmp_path), image.stat().st_blocks
    assert "compacted" in world.run("prl_disk_tool", "compact", *hdd)
    assert content(image, tmp_path) == before
    assert image.stat().st_blocks < taken - 20000
    told = world.run("prl_disk_tool", "resize", "--info", *hdd)
    assert told.splitlines()[1].split() == ["Size:", "40M"]
    assert "resized" in world.run("prl_disk_tool", "resize", "--size", "64M", *hdd)
    assert info(image)["virtual-size"] == 64 * MIB
    assert "64Mb" in world.run("prlctl", "list", "-i", "vm1")
    assert "smaller" in world.run("prl_disk_tool", "resize", "--size", "32M", *hdd, code=255)
    world.run("prl_disk_tool", "convert", "--plain", *hdd)
    assert image.stat().st_blocks * 512 >= 64 * MIB
    world.run("prl_disk_tool", "convert", "--expanding", *hdd)
    assert image.stat().st_blocks * 512 < 32 * MIB
    blocks = world.run("prl_disk_tool", "compact", "--info", *hdd)
    assert "Total blocks:     1024" in blocks
    world.run("prlctl", "snapshot", "vm1", "-n", "one")
    for words in (("compact",), ("merge",), ("convert", "--plain")):
        said = world.run("prl_disk_tool", *words, *hdd, code=12)
        assert "prlctl snapshot-list" in said, said


def test_of_nobody(world: World, tmp_path: Path) -> None:
    image = tmp_path / "lone.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "16M"], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "old", image], check=True)
    hdd = ("--hdd", os.fspath(image))
    assert "would be lost" in world.run("prl_disk_tool", "compact", *hdd, code=12)
    world.run("prl_disk_tool", "merge", "-n", *hdd)
    assert "snapshots" in info(image)
    world.run("prl_disk_tool", "convert", "--merge", "--expanding", *hdd)
    assert "snapshots" not in info(image)
    world.run("prl_disk_tool", "resize", "--size", "32M", *hdd)
    assert info(image)["virtual-size"] == 32 * MIB
    raw = tmp_path / "lone.raw"
    raw.write_bytes(bytes(8 * MIB))
    world.run("prl_disk_tool", "compact", "--hdd", os.fspath(raw))
    assert raw.stat().st_blocks < 100
    world.run("prl_disk_tool", "convert", "--plain", "--hdd", os.fspath(raw))
    assert raw.stat().st_blocks * 512 >= 8 * MIB
    hostile = tmp_path / "hostile.qcow2"
    words = ["-b", "/etc/passwd", "-F", "raw", hostile, "1M"]
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", *words], check=True)
    for verb in ("compact", "merge"):
        assert "refused" in world.run("prl_disk_tool", verb, "--hdd", os.fspath(hostile), code=11)
    assert "is not there" in world.run("prl_disk_tool", "merge", "--hdd", "/nowhere", code=255)
