"""Move of containers that run: renamed below them, or copied by rounds and started there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from networld import wait_for
from places import file_system, umount
from ploops import take_down
from realnode import World, at_work

__all__ = ["busybox_root", "busybox_tar"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    short_root.chmod(0o711)  # CRIU opens the container's root as the container's user
    with file_system("xfs", short_root / "n", 3 << 30) as root:
        made = World(root)
        cache = root / "vz/template/cache"
        cache.mkdir(parents=True)
        shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
        (root / "data").mkdir()
        with file_system("xfs", root / "other", 2 << 30):
            try:
                yield made
            finally:
                made.end()
                take_down_below(root)


def take_down_below(root: Path) -> None:
    """Unmount the node's own mounts; the file systems of the test are its own to unmount."""
    take_down(root / "vz")


def create(world: World, layout: str, *more: str) -> None:
    words = ("--ostemplate", "busybox-1", "--layout", layout, *more)
    world.run("vzctl", "create", "ct1", *words)
    world.run("prlctl", "start", "ct1")


def sh(world: World, text: str, code: int = 0) -> str:
    return world.run("prlctl", "exec", "ct1", text, code=code)


def home(world: World) -> str:
    return world.run("prlctl", "list", "-a", "-H", "-o", "home", "ct1").strip()


def count(world: World) -> str:
    """Write without an end from inside; return the id of who does it."""
    sh(world, "i=0; while :; do i=$((i+1)); echo $i >> /log; sync; done >/dev/null 2>&1 & true")
    return sh(world, "cut -d' ' -f22 /proc/1/stat")


@pytest.mark.parametrize("layout", ["ploop", pytest.param("simfs", marks=pytest.mark.long)])
def test_within_a_file_system_nobody_notices(world: World, layout: str) -> None:
    create(world, layout, *(("--diskspace", "512M") if layout == "ploop" else ()))
    born = count(world)
    out = world.run("prlctl", "move", "ct1", "--dst", "/data")
    assert out.endswith("The CT has been successfully moved.\n")
    assert home(world).startswith(f"{world.root}/data/")
    assert sh(world, "cut -d' ' -f22 /proc/1/stat") == born
    before = int(sh(world, "wc -l < /log"))
    wait_for(lambda: int(sh(world, "wc -l < /log")) > before)
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("prlctl", "start", "ct1")
    assert int(sh(world, "wc -l < /log")) >= before


def test_to_another_file_system_by_rounds(world: World) -> None:
    create(world, "ploop", "--diskspace", "512M")
    disk = ("--device-add", "hdd", "--size", "64M", "--mnt", "/srv/data")
    world.run("prlctl", "set", "ct1", *disk)
    sh(world, "head -c 30000000 /dev/urandom > /big; echo kept > /srv/data/file; sync")
    digest = sh(world, "md5sum < /big")
    world.run("prlctl", "snapshot", "ct1", "-n", "first")
    before = home(world)
    count(world)
    sh(world, "rm /srv/data/gone 2>/dev/null; echo later > /later; sync")
    world.run("prlctl", "move", "ct1", "--dst", "/other", "--restart")
    assert home(world).startswith(f"{world.root}/other/")
    assert world.run("prlctl", "status", "ct1").split()[-1] == "running"
    assert sh(world, "md5sum < /big") == digest
    assert sh(world, "cat /srv/data/file /later") == "kept\nlater\n"
    assert not Path(before).exists()
    lines = sh(world, "cat /log").split()
    assert lines[:-1] == [str(number + 1) for number in range(len(lines) - 1)]
    names = sorted(path.name for path in Path(home(world)).iterdir())
    assert ".moving" not in names
    world.run("prlctl", "stop", "ct1", "--kill")
    world.run("prlctl", "snapshot-switch", "ct1", "--skip-resume")
    world.run("prlctl", "stop", "ct1")  # forgets the memory, if the snapshot has any
    world.run("prlctl", "start", "ct1")
    sh(world, "cat /later", code=1)
    assert sh(world, "md5sum < /big") == digest


@pytest.mark.long
def test_a_tree_is_copied_while_it_stands(world: World) -> None:
    create(world, "simfs")
    sh(world, "echo kept > /file")
    world.run("prlctl", "move", "ct1", "--dst", "/other", "--restart")
    assert sh(world, "cat /file") == "kept\n"


@pytest.mark.requires("criu")
def test_to_another_file_system_with_all_processes(world: World) -> None:
    create(world, "ploop", "--diskspace", "512M")
    sh(world, "head -c 20000000 /dev/urandom > /big; mkdir /tmp; sync")
    digest = sh(world, "md5sum < /big")
    loop = "i=0; while :; do i=$((i+1)); echo $i >> /log; sleep 0.1; done"
    sh(world, f"setsid sh -c '{loop}' </dev/null >/dev/null 2>&1 &")
    wait_for(lambda: len(sh(world, "cat /log 2>/dev/null; true").split()) > 5)
    pids = sh(world, "pidof sh")
    before = home(world)
    world.run("prlctl", "move", "ct1", "--dst", "/other")
    assert home(world).startswith(f"{world.root}/other/")
    assert not Path(before).exists()
    assert set(pids.split()) & set(sh(world, "pidof sh").split())
    lines = sh(world, "cat /log").split()
    wait_for(lambda: len(sh(world, "cat /log").split()) > len(lines))
    more = sh(world, "cat /log").split()
    assert more == [str(number + 1) for number in range(len(more))], "nothing lost, nothing twice"
    assert sh(world, "md5sum < /big") == digest
    assert not (Path(home(world)) / "dump/Dump").exists()


def test_memory_that_cannot_be_saved(world: World) -> None:
    create(world, "ploop", "--diskspace", "512M")
    world.run("prlctl", "set", "ct1", "--features", "nesting:on")
    before = home(world)
    refused = world.run("prlctl", "move", "ct1", "--dst", "/other", code=255)
    assert "--restart" in refused
    assert home(world) == before
    assert not (Path(before) / ".moving").exists()
    assert world.run("prlctl", "status", "ct1").split()[-1] == "running"


def test_no_space_there_and_it_runs_on(world: World) -> None:
    create(world, "ploop", "--diskspace", "512M")
    sh(world, "head -c 30000000 /dev/urandom > /big; sync")
    born = sh(world, "cut -d' ' -f22 /proc/1/stat")
    before = home(world)
    (world.root / "small").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", world.root / "small"], check=True
    )
    try:
        out = world.run("prlctl", "move", "ct1", "--dst", "/small", "--restart", code=255)
        assert "space" in out
        assert list((world.root / "small").iterdir()) == []
    finally:
        umount(world.root / "small")
    assert sh(world, "cut -d' ' -f22 /proc/1/stat") == born
    assert home(world) == before
    assert not (Path(before) / ".moving").exists()


@pytest.mark.parametrize("how", ["--restart", "memory"])
@pytest.mark.parametrize(
    "moment", [0.8, *(pytest.param(x, marks=pytest.mark.long) for x in (0.3, 1.5, 2.5))]
)
def test_vzd_dies_in_the_middle(world: World, moment: float, how: str) -> None:
    create(world, "ploop", "--diskspace", "512M")
    sh(world, "head -c 30000000 /dev/urandom > /big; sync")
    digest = sh(world, "md5sum < /big")
    argv = world.argv("prlctl", "move", "ct1", "--dst", "/other")
    argv += ["--restart"] if how == "--restart" else []
    client = subprocess.Popen(argv, env=world.env, stdout=-1, stderr=-1)
    time.sleep(moment)
    os.kill(int((world.root / "run/pyvz/vzd.lock").read_text()), signal.SIGKILL)
    client.communicate(timeout=200)
    deadline = time.monotonic() + 200
    while content(world) != digest:  # an orderly stop that had begun goes on without vzd
        assert time.monotonic() < deadline
        time.sleep(0.3)
    wait_for(lambda: not at_work(world.root))
    places = [path for place in ("other", "vz/private") for path in (world.root / place).iterdir()]
    assert [os.fspath(path) for path in places] == [home(world)]
    assert not (Path(home(world)) / ".moving").exists()


def content(world: World) -> str:
    """What is in the file; nothing while the container goes down: then it is started."""
    if world.run("prlctl", "status", "ct1").split()[-1] in {"stopped", "suspended"}:
        with contextlib.suppress(AssertionError):  # it is still being repaired
            world.run("prlctl", "start", "ct1")
    argv = world.argv("prlctl", "exec", "ct1", "md5sum < /big")
    done = subprocess.run(argv, env=world.env, capture_output=True, text=True, check=False)
    return done.stdout
