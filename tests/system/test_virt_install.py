"""virt-install, unmodified, makes containers that run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:virt-install")


class VirtInstall:
    """virt-install on the node's own socket."""

    def __init__(self, world: World) -> None:
        self.virsh = Virsh(world)

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["virt-install", "--connect", self.virsh.uri, "--noautoconsole", *words],
            env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def install(world: World) -> Iterator[VirtInstall]:
    world.run("prlctl", "list", "-a")  # the daemon
    yield VirtInstall(world)
    for name in world.run("prlctl", "list", "-a", "-H", "-o", "name").split():
        world.run("prlctl", "delete", name, "--force")


def test_a_container(world: World, install: VirtInstall) -> None:
    install(
        *("--container", "--name", "web", "--memory", "128", "--vcpus", "1"),
        *("--filesystem", "type=template,source=busybox-1,target=/"),
        *("--network", "network=host-routed"),
    )
    assert "running" in world.run("prlctl", "status", "web")
    assert world.run("prlctl", "exec", "web", "echo", "here").strip() == "here"
    xml = install.virsh("dumpxml", "web")
    assert '<memory unit="KiB">131072</memory>' in xml


VM = ("--memory", "192", "--vcpus", "1", "--osinfo", "detect=off,require=off")


@pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
def test_machines(world: World, install: VirtInstall, tiny_iso: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    install(
        *("--name", "vm1", *VM, "--disk", f"path={disk},size=1,bus=virtio"),
        *("--cdrom", os.fspath(tiny_iso), "--graphics", "vnc", "--network", "none"),
    )
    assert "running" in world.run("prlctl", "status", "vm1")
    shown = world.run("prlctl", "list", "-i", "vm1")
    assert os.fspath(disk) in shown
    assert os.fspath(tiny_iso) in shown
    assert tmp_path.name in install.virsh("pool-list")
    assert "disk of vm1" in install.virsh("vol-delete", os.fspath(disk), code=1)
    world.run("prlctl", "delete", "vm1", "--force")
    install("--import", "--name", "vm2", *VM, "--disk", os.fspath(disk), "--network", "none")
    assert "running" in world.run("prlctl", "status", "vm2")
    world.run("prlctl", "delete", "vm2", "--force")
    if disk.exists():
        install.virsh("vol-delete", os.fspath(disk))
    assert not disk.exists()
    assert "still active" in install.virsh("pool-undefine", tmp_path.name, code=1)
    install.virsh("pool-destroy", tmp_path.name)
    install.virsh("pool-undefine", tmp_path.name)
