"""virt-install, unmodified, makes containers that run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
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
            timeout=120,
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
