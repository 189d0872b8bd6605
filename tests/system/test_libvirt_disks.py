"""The disks of a container by virsh: their names, their sizes, made larger while it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "loop", "program:virsh")


@pytest.fixture
def virsh(world: World) -> Iterator[Virsh]:
    words = ("--ostemplate", "busybox-1", "--layout", "ploop", "--diskspace", "512M")
    world.run("vzctl", "create", "ct1", *words)
    add = ("--device-add", "hdd", "--size", "128M", "--mnt", "/data")
    world.run("prlctl", "set", "ct1", *add)
    yield Virsh(world)
    world.run("prlctl", "delete", "ct1", "--force")


def capacity(virsh: Virsh, disk: str) -> int:
    """The size of a disk in MiB."""
    found = re.search(r"Capacity: +(\d+)", virsh("domblkinfo", "ct1", disk))
    assert found
    return int(found[1]) >> 20


def inside(world: World, place: str) -> int:
    """The size of a file system in MiB, as the container sees it."""
    told = world.run("prlctl", "exec", "ct1", f"df -m {place} | tail -n 1")
    return int(told.split()[1])


def test_blockresize(world: World, virsh: Virsh) -> None:
    """The root disk and another one, stopped and running; nothing is made smaller in use."""
    for name in ("/", "root", "hdd0"):
        assert capacity(virsh, name) == 512
    assert capacity(virsh, "/data") == capacity(virsh, "hdd1") == 128
    virsh("blockresize", "ct1", "/", "768M")
    virsh("blockresize", "ct1", "/data", "256M")
    assert (capacity(virsh, "/"), capacity(virsh, "hdd1")) == (768, 256)
    virsh("start", "ct1")
    before = inside(world, "/")
    assert inside(world, "/data") > 200
    virsh("blockresize", "ct1", "/", "1G")
    assert capacity(virsh, "/") == 1024
    assert inside(world, "/") > before + 200
    assert "smaller while it is mounted" in virsh("blockresize", "ct1", "/", "300M", code=1)
    assert "no disk '/other'" in virsh("blockresize", "ct1", "/other", "2G", code=1)
    assert "no disk 'sda'" in virsh("domblkinfo", "ct1", "sda", code=1)
    assert capacity(virsh, "/") == 1024
    several = ("blkdeviotune", "ct1", "/", "--total-bytes-sec", "1000000")
    assert "several disks" in virsh(*several, code=1)
