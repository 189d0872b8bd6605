"""Jobs on the disks of a virtual machine by virsh: copies, and clones made whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_libvirt import Virsh
from test_machine_mount import disk

from images import busybox_root, busybox_tar
from networld import wait_for
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires(
    "root", "loop", "program:virsh", "program:qemu-system-x86_64", "program:mke2fs"
)


def _same(one: Path, other: Path, kind: str = "qcow2") -> bool:
    words = ["qemu-img", "compare", "-U", "-q", "-f", "qcow2", "-F", kind, one, other]
    return subprocess.run(words, check=False).returncode == 0


def _under_way(world: World) -> list[Path]:
    places = (world.root / "var/lib/pyvz/journal", world.root / "run/pyvz/vm-backup")
    return [path for place in places if place.is_dir() for path in place.iterdir()]


def _job(virsh: Virsh) -> dict[str, str]:
    """What is told of the job on the disk of vm1; nothing when there is none."""
    rows = virsh("blockjob", "vm1", "sda", "--raw", "--bytes").splitlines()
    return dict(row.strip().split("=", 1) for row in rows)


@pytest.fixture
def image(world: World, tmp_path: Path) -> Path:
    """The image of vm1, which does not run."""
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "128")
    path = next((world.root / "vz/vmprivate").iterdir()) / "harddisk.hdd"
    disk(path, tmp_path)
    return path


def test_a_disk_is_copied(world: World, image: Path, tmp_path: Path) -> None:
    virsh, target = Virsh(world), tmp_path / "copy"
    copy = ("blockcopy", "vm1", "sda", os.fspath(target), "--transient-job")
    assert "not running" in virsh(*copy, code=1)
    virsh("start", "vm1")
    virsh(*copy, "--wait", "--finish")
    assert _same(image, target)
    wait_for(lambda: not _under_way(world), 60)
    assert "exists already" in virsh(*copy, code=1)
    assert not _job(virsh)
    assert "block job" in virsh("blockjob", "vm1", "sda", "--abort", code=1)
    _raw_at_a_speed(world, virsh, image, tmp_path)
    assert "there is no image below" in virsh("blockcommit", "vm1", "sda", code=1)
    assert "is whole" in virsh("blockpull", "vm1", "sda", code=1)
    target.unlink()
    world.run("prlctl", "set", "vm1", "--description", "goes on")
    virsh(*copy, "--bytes", "--bandwidth", "4096")
    world.kill_vzd()
    world.run("prlctl", "set", "vm1", "--description", "repaired", "--timeout", "60")
    assert not target.exists()
    assert not _job(virsh)
    virsh(*copy, "--wait", "--finish")
    virsh("destroy", "vm1")
    assert _same(image, target)
    target.unlink()
    virsh("start", "vm1")
    virsh(*copy)
    assert "being backed up" in virsh("managedsave", "vm1", code=1)
    virsh("destroy", "vm1")
    wait_for(lambda: not _under_way(world), 60)
    assert not target.exists()


def _raw_at_a_speed(world: World, virsh: Virsh, image: Path, work: Path) -> None:
    """Slow, then called off: nothing is left; then fast, into an image that is there."""
    target, plan = work / "flat", work / "plan.xml"
    plan.write_text(f"<disk type='file'><source file='{target}'/><driver type='raw'/></disk>")
    copy = ("blockcopy", "vm1", "sda", "--xml", os.fspath(plan))
    virsh(*copy, "--bytes", "--bandwidth", "65536")
    told = _job(virsh)
    assert (told["type"], told["bandwidth"]) == ("Block Copy", "65536"), told
    assert "does not go over" in virsh("blockjob", "vm1", "sda", "--pivot", code=1)
    virsh("blockjob", "vm1", "sda", "--abort")
    wait_for(lambda: not target.exists(), 60)
    wait_for(lambda: not _under_way(world), 60)
    size = subprocess.run(["qemu-img", "info", image, "-U"], capture_output=True, text=True,
                          check=True).stdout.split("(")[1].split()[0]  # fmt: skip
    with target.open("wb") as file:
        file.truncate(int(size))
    virsh(*copy, "--bytes", "--bandwidth", "65536", "--reuse-external")
    virsh("blockjob", "vm1", "sda", "0")  # no limit any more
    wait_for(lambda: (told := _job(virsh)) and told["cur"] == told["end"], 120)
    virsh("blockjob", "vm1", "sda", "--abort")
    wait_for(lambda: not _under_way(world), 60)
    assert _same(image, target, "raw")


def test_a_clone_is_made_whole(world: World, image: Path) -> None:
    """It needs its template no more; what a snapshot needs stays."""
    virsh = Virsh(world)
    world.run("prlctl", "set", "vm1", "--template", "yes")
    world.run("prlctl", "clone", "vm1", "--name", "vm2", "--linked")
    virsh("start", "vm2")
    assert "template of all its clones" in virsh("blockcommit", "vm2", "sda", code=1)
    virsh("snapshot-create-as", "vm2", "one")
    assert "snapshots" in virsh("blockpull", "vm2", "sda", code=1)
    virsh("snapshot-delete", "vm2", virsh("snapshot-list", "vm2", "--name"))
    virsh("blockpull", "vm2", "sda", "--wait")
    wait_for(lambda: not _under_way(world), 60)
    virsh("destroy", "vm2")
    clone = next(p for p in (world.root / "vz/vmprivate").iterdir() if p != image.parent)
    assert _same(image, clone / "harddisk.hdd")
    world.run("prlctl", "set", "vm1", "--template", "no")
    world.run("prlctl", "delete", "vm1")
    virsh("start", "vm2")
    virsh("destroy", "vm2")


def test_containers_have_none(world: World, tmp_path: Path) -> None:
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    virsh = Virsh(world)
    virsh("start", "ct1")
    for words in (("blockpull", "ct1", "/"), ("blockcommit", "ct1", "/"),
                  ("blockcopy", "ct1", "/", os.fspath(tmp_path / "x"))):  # fmt: skip
        assert "is a container" in virsh(*words, code=1)
