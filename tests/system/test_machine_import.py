"""`prlctl create --import`: machines from elsewhere, by the command line."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")

OVF = """<Envelope xmlns="o" xmlns:o="o" xmlns:r="r">
<References><File o:id="f" o:href="disk.vmdk"/></References>
<DiskSection><Disk o:diskId="d" o:fileRef="f"/></DiskSection>
<VirtualSystem o:id="web"><VirtualHardwareSection>
<Item><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>3</r:VirtualQuantity></Item>
<Item><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>768</r:VirtualQuantity>
<r:AllocationUnits>byte * 2^20</r:AllocationUnits></Item>
<Item><r:ResourceType>17</r:ResourceType><r:HostResource>ovf:/disk/d</r:HostResource></Item>
</VirtualHardwareSection></VirtualSystem></Envelope>
"""


def appliance(directory: Path) -> Path:
    disk = directory / "disk.vmdk"
    options = ["-f", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "create", "-q", *options, disk, "16M"], check=True)
    (directory / "web.ovf").write_text(OVF)
    with tarfile.open(directory / "web.ova", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("web.ovf", "disk.vmdk"):
            tar.add(directory / name, name)
    return directory / "web.ova"


def test_import(world: World, tmp_path: Path) -> None:
    path = appliance(tmp_path)

    def create(name: str, source: Path, *words: str, code: int = 0) -> str:
        argv = ("create", name, "--vmtype", "vm", "--import", os.fspath(source), *words)
        return world.run("prlctl", *argv, code=code)

    create("web", path)
    create("single", tmp_path / "disk.vmdk")
    info = world.run("prlctl", "list", "-i", "web")
    assert "cpus=3" in info
    assert "768Mb" in info
    assert "16Mb" in world.run("prlctl", "list", "-i", "single")
    home = next((world.root / "vz/vmprivate").glob("*/harddisk.hdd"))
    assert home.read_bytes()[:4] == b"QFI\xfb"
    world.run("prlctl", "start", "web")
    world.run("prlctl", "stop", "web", "--kill")
    refused = create("x", tmp_path / "disk.vmdk", "--ostemplate", "debian-12", code=1)
    assert "Unable to simultaneously" in refused
    assert "no image" in create("x", tmp_path / "none", code=255)
    assert "archive" in create("x", _text(tmp_path / "x.ova"), code=255)
    bundle(create, world, tmp_path)
    assert "--import" in world.run("prlctl", "register", os.fspath(path), code=255)
    assert len(list((world.root / "vz/vmprivate").iterdir())) == 4


def bundle(create: Callable[..., str], world: World, tmp_path: Path) -> None:
    """Ploop disks: in the form that runs here, and thin, as they come from elsewhere."""
    for form in ("preallocated", "expanded"):
        path = tmp_path / f"{form}.hdd"
        path.mkdir()
        words = ("init", "-s", "8M", "-t", "none", os.fspath(path / "root.hds"))
        world.run("ploop", *words)
        image = path / "root.hds"
        with image.open("r+b") as stream:
            stream.seek(-8 << 20, os.SEEK_END)
            stream.write(b"first sector")
        if form == "expanded":
            raw = tmp_path / "raw"
            raw.write_bytes(image.read_bytes()[-8 << 20 :])
            argv = ["qemu-img", "convert", "-f", "raw", "-O", "parallels", raw, image]
            subprocess.run(argv, check=True)
        create(form, path)
        copy = next((world.root / "vz/vmprivate").glob(f"{uuid_of(world, form)}/harddisk.hdd"))
        told = subprocess.run(
            ["qemu-io", "-r", "-c", "read -P 102 0 1", copy], check=True, capture_output=True
        )
        assert b"verification failed" not in told.stdout
        assert "8Mb" in world.run("prlctl", "list", "-i", form)


def uuid_of(world: World, name: str) -> str:
    return world.run("prlctl", "list", "-H", "-o", "uuid", name).strip().strip("{}")


def _text(path: Path) -> Path:
    path.write_text("text\n" * 500)
    return path
