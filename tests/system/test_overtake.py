"""`stop --kill` while an orderly stop still waits for a guest that does not stop."""

from __future__ import annotations

import subprocess
import time

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
PATIENCE = 200.0
DEAF = "#!/bin/sh\nwhile :; do sleep 1; done\n"  # the first of its namespace hears SIGKILL only


@pytest.mark.requires("root", "program:qemu-system-x86_64")
def test_a_machine(world: World) -> None:
    world.run("prlctl", "create", "one", "--vmtype", "vm", "--no-hdd")
    world.run("prlctl", "set", "one", "--memsize", "64")
    world.run("prlctl", "start", "one")  # no guest boots: nobody hears the power button
    overtaken(world)


@pytest.mark.requires("root", "loop")
def test_a_container(world: World) -> None:
    world.run("prlctl", "create", "one", "--vmtype", "ct", "--ostemplate", "busybox-1")
    root = world.root / "vz/root"
    world.run("prlctl", "mount", "one")
    init = next(root.iterdir()) / "sbin/init"
    init.unlink()
    init.write_text(DEAF)
    init.chmod(0o755)
    world.run("prlctl", "umount", "one")
    world.run("prlctl", "start", "one")
    overtaken(world)


def overtaken(world: World) -> None:
    """Stop it by force while it is being stopped; the first stop is content with that, too."""
    argv = world.argv("prlctl", "stop", "one")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=world.env, stdout=pipe, stderr=pipe, text=True) as first:
        deadline = time.monotonic() + PATIENCE
        while "stopping" not in world.run("prlctl", "status", "one"):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.05)
        assert "forcibly stopped" in world.run("prlctl", "stop", "one", "--kill")
        _, errors = first.communicate(timeout=PATIENCE)
        assert first.returncode == 0, errors
    assert "stopped" in world.run("prlctl", "status", "one")
