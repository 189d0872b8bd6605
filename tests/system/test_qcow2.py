"""Containers on qcow2 disks by the command lines: snapshots, death of vzd and of the daemon."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.storage.daemon import Daemon
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
GUID = re.compile(r"\{[0-9a-f-]{36}\}")


def sh(world: World, text: str) -> str:
    return world.run("prlctl", "exec", "ct1", text)


def status(world: World) -> str:
    return world.run("prlctl", "status", "ct1").split()[-1]


def test_life_snapshots_and_deaths(world: World) -> None:
    words = ("--ostemplate", "busybox-1", "--layout", "qcow2", "--diskspace", "512M")
    world.run("vzctl", "create", "ct1", *words)
    world.run("prlctl", "start", "ct1")
    sh(world, "echo one > /file; sync")
    first = GUID.search(world.run("prlctl", "snapshot", "ct1", "-n", "first"))[0]  # type: ignore[index]
    sh(world, "echo two > /file; sync")

    # vzd dies: container and disk go on, the next vzd finds them.
    os.kill(int((world.root / "run/pyvz/vzd.lock").read_text()), signal.SIGKILL)
    assert sh(world, "cat /file") == "two\n"
    world.run("prlctl", "set", "ct1", "--diskspace", "768M")
    assert int(sh(world, "df -m / | tail -1").split()[1]) > 600

    # The daemon dies: errors inside, the container is stopped, nothing that was synced is lost.
    home = Path(world.run("prlctl", "list", "-H", "-o", "home", "ct1").strip())
    pid = Daemon(home / "qcow2/daemon").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 200
    while status(world) != "stopped" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert status(world) == "stopped"
    assert "disk-failed" in (world.root / "var/log/pyvz/events.log").read_text()
    assert not (home / "qcow2/daemon").exists()
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "two\n"
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("prlctl", "snapshot-switch", "ct1", "-i", first, "--skip-resume")
    world.run("prlctl", "stop", "ct1")  # forgets the memory, if the snapshot has any
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "one\n"
    world.run("prlctl", "snapshot-delete", "ct1", "-i", first)
    made = world.run("prlctl", "backup", "ct1")
    assert "success" in made
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("prlctl", "clone", "ct1", "--name", "ct2")


def test_a_thin_disk_runs_where_it_lies_and_comes_back(world: World) -> None:
    words = ("--ostemplate", "busybox-1", "--layout", "ploop", "--diskspace", "512M")
    world.run("vzctl", "create", "ct1", *words)
    world.run("prlctl", "start", "ct1")
    sh(world, "echo one > /file; sync")
    world.run("prlctl", "stop", "ct1", "--kill")
    home = Path(world.run("prlctl", "list", "-H", "-o", "home", "ct1").strip())
    disk = os.fspath(home / "root.hdd/DiskDescriptor.xml")
    world.run("ploop", "convert", "-f", "expanded", disk)
    refused = world.run("prlctl", "start", "ct1", code=255)
    assert "prlctl convert" in refused
    world.run("prlctl", "convert", "ct1", "--layout", "qcow2")
    assert not list((home / "root.hdd").glob("*.qcow2"))
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "one\n"
    sh(world, "echo two > /file; sync")
    world.run("prlctl", "snapshot", "ct1", "-n", "later")
    sh(world, "echo three > /file; sync")
    world.run("prlctl", "stop", "ct1", "--kill")
    assert "must not be touched" in world.run(
        "ploop", "mount", "-m", os.fspath(world.root / "m"), disk, code=12
    )
    world.run("prlctl", "convert", "ct1", "--layout", "ploop")
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "three\n"
    world.run("prlctl", "stop", "ct1", "--kill")
    first = GUID.search(world.run("prlctl", "snapshot-list", "ct1", "-H"))[0]  # type: ignore[index]
    world.run("prlctl", "snapshot-switch", "ct1", "-i", first, "--skip-resume")
    world.run("prlctl", "stop", "ct1")  # forgets the memory, if the snapshot has any
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "two\n"
