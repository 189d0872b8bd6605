"""Many lives of containers leave nothing behind; the leak fixture looks after each test."""

from __future__ import annotations

import os

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]


def _life(world: World, name: str) -> None:
    world.run("prlctl", "create", name, "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "start", name)
    assert world.run("prlctl", "exec", name, "echo", "alive") == "alive\n"
    world.run("prlctl", "stop", name, "--kill")
    world.run("prlctl", "delete", name)


def _traces(world: World) -> dict[str, list[str]]:
    places = ("vz/private", "vz/root", "vz/lock", "etc/vz/names", "run/pyvz/state", "var/lib/pyvz")
    return {
        place: sorted(os.listdir(world.root / place))
        for place in places
        if (world.root / place).is_dir()
    }


def _mounts(world: World) -> list[str]:
    with open("/proc/mounts", encoding="utf-8") as mounts:
        return sorted(line for line in mounts if os.fspath(world.root) in line)


@pytest.mark.parametrize(
    "lives", [5, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_lives_leave_no_trace(world: World, lives: int) -> None:
    _life(world, "ct0")
    before = _traces(world), _mounts(world)
    for number in range(lives):
        _life(world, f"ct{number % 7}")
    assert (_traces(world), _mounts(world)) == before
