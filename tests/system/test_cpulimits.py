"""CPU limits of a real container, live: number, mask, percent, MHz, bursts; what is seen inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.linux import processors
from pyvz.store.paths import Paths
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = [
    pytest.mark.requires("cgroup_v1", "program:lxcfs"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU only"),
]


class Container:
    def __init__(self, world: World) -> None:
        self.world = world
        world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1-x86_64")
        self.uuid = world.run("vzlist", "-a", "-H", "-o", "uuid").strip()

    def set(self, *words: str) -> None:
        self.world.run("vzctl", "set", "web", *words, "--save")

    def file(self, controller: str, name: str) -> str:
        below = f"{Paths(self.world.root).instance}.slice/{self.uuid}/{name}"
        return Path(f"/sys/fs/cgroup/{controller}/{below}").read_text().strip()

    def inside(self, command: str) -> str:
        return self.world.run("prlctl", "exec", "web", command).strip()


def test_cpu_limits_live(world: World) -> None:
    web = Container(world)
    web.set("--cpus", "1")
    world.run("prlctl", "start", "web")
    assert web.inside("busybox nproc") == "1"
    assert web.inside("busybox grep -c ^processor /proc/cpuinfo") == "1"
    assert web.file("cpu", "cpu.cfs_quota_us") == "100000"
    assert len(processors.parse(web.file("cpuset", "cpuset.cpus"))) == 1

    web.set("--cpus", "0")
    assert web.inside("busybox nproc") == str(len(processors.usable()))
    assert web.file("cpu", "cpu.cfs_quota_us") == "-1"

    web.set("--cpumask", "1")
    assert web.file("cpuset", "cpuset.cpus") == "1"
    web.set("--cpumask", "all", "--nodemask", "0")
    assert web.file("cpuset", "cpuset.mems") == "0"

    web.set("--cpulimit", "50%", "--cpuunits", "2000", "--burst_cpulimit", "75")
    assert web.file("cpu", "cpu.cfs_quota_us") == "50000"
    assert web.file("cpu", "cpu.shares") == "2048"
    assert web.file("cpu", "cpu.cfs_burst_us") == "25000"
    assert web.inside("busybox grep -c ^processor /proc/cpuinfo") == "1"
    web.set("--cpulimit", "20")  # below the burst that was there
    assert web.file("cpu", "cpu.cfs_quota_us") == "20000"
    assert web.file("cpu", "cpu.cfs_burst_us") == "20000"

    mhz = processors.mhz()
    web.set("--cpulimit", f"{round(mhz / 2)}mhz")
    assert abs(int(web.file("cpu", "cpu.cfs_quota_us")) - 50000) <= 1000
    world.run("prlctl", "restart", "web")
    assert abs(int(web.file("cpu", "cpu.cfs_quota_us")) - 50000) <= 1000
