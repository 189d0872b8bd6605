"""Backups by the command lines, of running containers of busybox."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import World

from images import busybox_root, busybox_tar
from places import file_system
from ploops import take_down

__all__ = ["busybox_root", "busybox_tar"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
TAG = re.compile(r"\{[0-9a-f-]{36}\}(?:\.\d+)?")


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    with file_system("xfs", short_root / "n", 3 << 30) as root:
        made = World(root)
        cache = root / "vz/template/cache"
        cache.mkdir(parents=True)
        shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
        yield made
        made.end()
        take_down(root)


def create(world: World, layout: str) -> None:
    size = ("--diskspace", "512M") if layout == "ploop" else ()
    words = ("--ostemplate", "busybox-1", "--layout", layout, *size)
    world.run("vzctl", "create", "ct1", *words)


def sh(world: World, name: str, text: str) -> str:
    return world.run("prlctl", "exec", name, text)


def back_up(world: World, *words: str) -> str:
    out = world.run("prlctl", "backup", "ct1", *words)
    found = TAG.findall(out)
    assert out == (
        "Backing up the CT ct1\n"
        f"The CT has been successfully backed up with backup id {found[-1]}.\n"
    )
    return str(found[-1])


@pytest.mark.parametrize("layout", ["ploop", "simfs"])
def test_of_a_running_container(world: World, layout: str) -> None:
    create(world, layout)
    world.run("prlctl", "start", "ct1")
    # Somebody writes all the time; what `mark` says is in the backup.
    sh(world, "ct1", "(while :; do date > /busy; done) > /dev/null 2>&1 & echo one > /mark")
    first = back_up(world, "--description", "the first")
    sh(world, "ct1", "echo two > /mark; rm /etc/inittab; mkfifo /fifo")
    second = back_up(world)
    assert second == first + ".2"
    assert "running" in world.run("prlctl", "status", "ct1")

    table = world.run("prlctl", "backup-list", "ct1").splitlines()
    assert table[0].split() == ["ID", "Backup_ID", "Node", "Date", "Type", "Size"]
    rows = [line.split() for line in table[1:]]
    assert [(row[1], row[5]) for row in rows] == [(first, "f"), (second, "i")]
    block = world.run("prlctl", "backup-list", "-f")
    assert "Description: the first\n" in block
    assert "DiskList:\n\tName: root.hdd\n" in block

    refused = world.run("prlctl", "restore", "ct1", code=255)
    assert "Failed to restore the CT: ct1 is running" in refused
    refused = world.run("prlctl", "backup", "ct1", "-s", "root@127.0.0.1:1", code=255)
    assert "Cannot connect to root@127.0.0.1" in refused

    out = world.run("prlctl", "restore", "-t", first, "-n", "old")
    assert out == f"Restore the backup id={first}\nThe CT has been restored.\n"
    world.run("prlctl", "start", "old")
    assert sh(world, "old", "cat /mark") == "one\n"
    world.run("prlctl", "stop", "old", "--kill")

    world.run("prlctl", "stop", "ct1", "--kill")
    assert world.run("prlctl", "restore", "ct1") == (
        "Restore the CT ct1\nThe CT has been restored.\n"
    )
    world.run("prlctl", "mount", "ct1")
    world.run("prlctl", "umount", "ct1")
    shown = world.run("prlctl", "backup-mount", "-t", first)
    place = Path(shown.split()[-1])
    assert (place / "mark").read_text() == "one\n"
    assert (place / "etc/inittab").exists()
    world.run("prlctl", "backup-umount", "-t", first)
    assert not place.exists()
    assert world.run("prlctl", "backup-verify") == "No damage was found.\n"

    out = world.run("prlsrvctl", "backup")
    assert out.count("has been successfully backed up") == 2
    out = world.run("prlctl", "backup-delete", "-t", second)
    assert out.endswith(f"The {second} backup have been successfully removed.\n")
    world.run("prlctl", "delete", "ct1")
    out = world.run("prlctl", "backup-delete", "ct1")
    assert out == "Delete the CT backup\nThe CT backup have been successfully removed.\n"
    assert first not in world.run("prlctl", "backup-list")
    world.run("prlctl", "restore", "ct1", code=255)
    world.run("prlctl", "restore", code=1)
