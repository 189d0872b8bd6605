"""A pool becomes full below a container that writes: it is paused before, and goes on after."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from places import file_system
from ploops import take_down
from realnode import World

__all__ = ["busybox_root", "busybox_tar"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
FLOOR = 200 << 20


@pytest.fixture
def world(short_root: Path, busybox_tar: Path) -> Iterator[World]:
    root = short_root / "n"
    cache = root / "vz/template/cache"
    cache.mkdir(parents=True)
    shutil.copy(busybox_tar, cache / "busybox-1-x86_64.plain.tar.zst")
    with file_system("xfs", root / "small", 1 << 30) as small:
        made = World(root)
        try:
            yield made
        finally:
            (small / "ballast").unlink(missing_ok=True)
            made.end()
            take_down(root / "vz")


def status(world: World) -> str:
    return world.run("prlctl", "status", "ct1").split()[-1]


def wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_a_writer_is_paused_before_the_pool_is_full(world: World) -> None:
    small = world.root / "small"
    words = ("--driver", "ploop", "--path", "/small", "--option", f"floor={FLOOR}B")
    world.run("prlsrvctl", "pool", "add", "small", *words)
    words = ("--vmtype", "ct", "--ostemplate", "busybox-1", "--pool", "small")
    world.run("prlctl", "create", "ct1", *words)  # 10 GiB on 1 GiB
    with (small / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 400 << 20)
    world.run("prlctl", "start", "ct1")
    loop = "while :; do head -c 1000000 /dev/zero | tr '\\\\0' x >> /fill; sync; sleep 0.05; done"
    world.run("prlctl", "exec", "ct1", f'setsid sh -c "{loop}" </dev/null >/dev/null 2>&1 &')
    wait(lambda: status(world) == "paused", 200)
    time.sleep(1)
    space = os.statvfs(small)
    left = space.f_bavail * space.f_frsize
    assert 0 < left < FLOOR
    (small / "ballast").unlink()
    wait(lambda: status(world) == "running", 200)
    size = int(world.run("prlctl", "exec", "ct1", "stat -c %s /fill"))
    wait(lambda: int(world.run("prlctl", "exec", "ct1", "stat -c %s /fill")) > size, 200)
    assert world.run("prlctl", "exec", "ct1", "tr -d x < /fill | wc -c") == "0\n"
    world.run("prlctl", "stop", "ct1", "--kill")
    home = Path(world.run("prlctl", "list", "-a", "-H", "-o", "home", "ct1").strip())
    out = world.run("ploop", "check", os.fspath(home / "root.hdd/root.hds"))
    assert "error" not in out.lower().replace("no error", "")
