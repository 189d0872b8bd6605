"""Snapshots and disks by the command lines, on running containers of busybox."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import World

from images import busybox_root, busybox_tar
from networld import wait_for
from places import file_system
from ploops import take_down
from pyvz.linux import loopdevice

__all__ = ["busybox_root", "busybox_tar"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
GUID = re.compile(r"\{[0-9a-f-]{36}\}")


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    with file_system("xfs", short_root / "n", 3 << 30) as root:
        made = World(root)
        cache = root / "vz/template/cache"
        cache.mkdir(parents=True)
        shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
        words = ("--ostemplate", "busybox-1", "--layout", "ploop", "--diskspace", "512M")
        made.run("vzctl", "create", "ct1", *words)
        yield made
        made.end()
        take_down(root)


def sh(world: World, text: str, code: int = 0) -> str:
    return world.run("prlctl", "exec", "ct1", text, code=code)


def test_of_a_running_container(world: World) -> None:
    world.run("prlctl", "start", "ct1")
    sh(world, "echo one > /file; sync")
    out = world.run("prlctl", "snapshot", "ct1", "-n", "first", "-d", "before")
    assert out.startswith("Creating the snapshot...\nThe snapshot with id {")
    assert out.endswith("} has been successfully created.\n")
    first = GUID.search(out)[0]  # type: ignore[index]
    sh(world, "echo two > /file")
    refused = world.run("prlctl", "snapshot-switch", "ct1", "-i", first, code=255)
    assert "Failed to switch to snapshot: ct1 is running" in refused
    assert sh(world, "cat /file") == "two\n"
    second = "{11111111-2222-4333-8444-555555555555}"
    out = world.run("vzctl", "snapshot", "ct1", "--id", second.strip("{}"), "--name", "second")
    assert out == (f"Creating snapshot {second}\nSnapshot {second} has been successfully created\n")
    world.run("vzctl", "snapshot", "ct1", "--id", second, code=156)
    assert world.run("prlctl", "snapshot-list", "ct1") == (
        "PARENT_SNAPSHOT_ID                      SNAPSHOT_ID\n"
        f"{'':>38}  {first}\n{first} *{second}\n"
    )
    assert world.run("prlctl", "snapshot-list", "ct1", "-t") == f"_{first}*{second}\n"
    info = world.run("prlctl", "snapshot-list", "ct1", "-i", first)
    assert re.fullmatch(
        rf"ID: {first}\nName: first\nDate: [-0-9]{{10}} [:0-9]{{8}}\n"
        r"State: power(on|off)\nDescription: before\n\n",  # on: with its memory, by CRIU
        info,
    )
    world.run("prlctl", "stop", "ct1", "--kill")
    assert world.run("prlctl", "snapshot-switch", "ct1", "-i", first, "--skip-resume") == (
        f"Switch to the snapshot {first}\nThe CT has been successfully switched.\n"
    )
    world.run("prlctl", "stop", "ct1")  # forgets the memory
    world.run("prlctl", "start", "ct1")
    assert sh(world, "cat /file") == "one\n"
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("vzctl", "snapshot-switch", "ct1", "--id", second)
    world.run("prlctl", "stop", "ct1", "--kill")
    table = world.run("vzctl", "snapshot-list", "ct1", "-H", "-o", "current,uuid,name")
    assert table == f"  {first} first\n* {second} second\n"
    world.run("vzctl", "snapshot-delete", "ct1", "--id", first)
    world.run("vzctl", "snapshot-delete", "ct1", "--id", first, code=158)
    assert world.run("prlctl", "snapshot-delete", "ct1", "-i", second) == (
        "Delete the snapshot...\nThe snapshot has been successfully deleted.\n"
    )
    world.run("vzctl", "snapshot-switch", "ct1", code=20)
    world.run("vzctl", "compact", "ct1")


def test_a_disk_comes_and_goes_while_it_runs(world: World) -> None:
    world.run("prlctl", "start", "ct1")
    words = ("--device-add", "hdd", "--size", "64M", "--mnt", "/srv/data")
    out = world.run("prlctl", "set", "ct1", *words)
    assert out.startswith("Creating hdd1 (+) scsi:1 image=")
    sh(world, "echo hot > /srv/data/file && chown 1000 /srv/data/file")
    assert " /srv/data " in sh(world, "cat /proc/mounts")
    assert sh(world, "stat -c %u /srv/data/file /srv/data") == "1000\n0\n"
    sh(world, "cd /srv/data && sleep 100 >/dev/null 2>&1 &")
    wait_for(lambda: "/srv/data" in sh(world, "ls -l /proc/[0-9]*/cwd; true"))
    busy = world.run("prlctl", "set", "ct1", "--device-del", "hdd1", code=255)
    assert "in use" in busy
    sh(world, "kill $(pidof sleep)")
    sh(world, "cat /srv/data/file")
    world.run("prlctl", "set", "ct1", "--device-set", "hdd1", "--mnt", "/moved")
    assert sh(world, "cat /moved/file") == "hot\n"
    world.run("prlctl", "snapshot", "ct1")  # both disks, of one moment
    sh(world, "echo later > /moved/file")
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("prlctl", "snapshot-switch", "ct1", "--skip-resume")
    world.run("prlctl", "start", "ct1")  # with its memory, where the node has a CRIU
    assert sh(world, "cat /moved/file") == "hot\n"
    world.run("vzctl", "set", "ct1", "--device-del", "hdd1", "--save", code=3)  # in a snapshot
    world.run("prlctl", "set", "ct1", "--device-del", "hdd1")
    assert sh(world, "ls /moved") == ""
    wait_for(lambda: len(loopdevice.below(world.root / "vz/private")) == 1)
    world.run("prlctl", "set", "ct1", "--device-set", "hdd0", "--size", "700M")
    blocks = int(sh(world, "df -k / | tail -1").split()[1])
    assert blocks > 600 << 10


def test_converted(world: World) -> None:
    world.run("prlctl", "convert", "ct1", "--layout", "simfs")
    assert world.run("vzctl", "snapshot", "ct1", code=156)
    world.run("vzctl", "convert", "ct1")
    world.run("prlctl", "start", "ct1")
    world.run("vzctl", "convert", "ct1", "--layout", "simfs", code=155)
    sh(world, "true")


def test_what_is_not_used_is_given_back(world: World) -> None:
    world.run("prlctl", "start", "ct1")
    assert world.run("pcompact") == ""
    sh(world, "head -c 150000000 /dev/urandom > /big; sync; rm /big; sync")
    told = world.run("vzctl", "compact", "ct1", "--dry")
    assert "root.hdd: " in told
    assert world.run("pcompact", "-n").rstrip().endswith("unused: compact")
    assert "root.hdd" in world.run("pcompact", "--stat")
    world.run("prlctl", "set", "ct1", "--autocompact", "off")
    assert world.run("pcompact") == ""
    assert "stays" in world.run("pcompact", "-v")
    world.run("prlctl", "set", "ct1", "--autocompact", "on")
    (world.root / "etc/vz/pcompact.conf").write_text("THRESHOLD=99\n")
    assert world.run("pcompact") == ""
    (world.root / "etc/vz/pcompact.conf").write_text("# ours\nTHRESHOLD=10\nDELTA=5\nDEFRAG=yes\n")
    freed = world.run("pcompact").split()
    assert int(freed[freed.index("MiB") - 1]) > 100
    assert world.run("pcompact") == ""
    (world.root / "etc/vz/pcompact.conf").write_text("THRESHOLD=many\n")
    world.run("pcompact", code=1)
