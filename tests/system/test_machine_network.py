"""The network of virtual machines: the same addresses, filters and counters as containers have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from networld import (
    LAUNCH,
    OUTSIDE4,
    NetWorld,
    answered,
    busybox_root,
    busybox_tar,
    networld,
    wait_for,
)
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "networld", "tiny_iso"]
pytestmark = pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")


def boot(world: NetWorld, iso: Path, *options: str) -> None:
    world.prlctl("create", "vm", "--vmtype", "vm", "--no-hdd")
    world.prlctl("set", "vm", "--memsize", "192", "--cpus", "1")
    world.prlctl("set", "vm", "--device-set", "cdrom0", "--image", os.fspath(iso))
    world.prlctl("set", "vm", "--device-add", "net", *options)
    world.prlctl("start", "vm")
    argv = ["nsenter", f"--net=/run/netns/{world.node}", sys.executable, "-IS", "-c"]
    argv += [LAUNCH.format("prlctl"), "exec", "vm", "true"]
    for _ in range(300):
        done = subprocess.run(
            argv, env=world.env, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"the guest does not boot: {done.stderr!r}")


def inside(world: NetWorld, command: str, code: int | None = 0) -> str:
    return world.cli("prlctl", "exec", "vm", command, code=code)  # type: ignore[arg-type]


def address(world: NetWorld, device: str, given: str) -> None:
    inside(world, f"ip link set {device} up; ip addr add {given}/32 dev {device}")


def test_machines_and_containers_reach_each_other(networld: NetWorld, tiny_iso: Path) -> None:
    world = networld
    world.create("ct", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    before = world.links()
    boot(world, tiny_iso, "--type", "routed", "--ipadd", "10.77.0.2", "--ipadd", "fd77::2")
    address(world, "eth0", "10.77.0.2")
    inside(world, "ip route add default dev eth0")
    inside(world, "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad")  # busybox knows no nodad
    inside(world, "ip addr add fd77::2/128 dev eth0; ip -6 route add default via fe80::1 dev eth0")
    for here, there in (("10.77.0.2", "10.77.0.1"), ("fd77::2", "fd77::1")):
        assert world.pings("ct", here)
        assert answered(lambda *words: inside(world, " ".join(words), None), there)
        assert world.reached(here)
    # What it may not be.
    inside(world, "ip addr add 10.77.0.66/32 dev eth0; ip addr add fd77::66/128 dev eth0")
    assert "100% packet loss" in inside(world, "ping -c 1 -W 1 -I 10.77.0.66 10.77.0.1", None)
    assert "100% packet loss" in inside(world, "ping6 -c 1 -W 1 -I fd77::66 fd77::1", None)
    assert not world.reached("10.77.0.66", patience=1)
    # The cable, and a second card.
    world.prlctl("set", "vm", "--device-disconnect", "net0")
    assert not world.reached("10.77.0.2", patience=1)
    world.prlctl("set", "vm", "--device-connect", "net0")
    assert world.reached("10.77.0.2")
    world.prlctl("set", "vm", "--device-add", "net", "--type", "routed", "--ipadd", "10.77.0.3")
    wait_for(lambda: "eth1" in inside(world, "ip link"))
    address(world, "eth1", "10.77.0.3")
    inside(world, f"ip route add {OUTSIDE4} dev eth1")
    assert world.reached("10.77.0.3")
    world.prlctl("set", "vm", "--device-del", "net1")
    assert not world.reached("10.77.0.3", patience=1)
    # Through the disk and back; the traffic was counted.
    world.prlctl("suspend", "vm")
    assert not world.reached("10.77.0.2", patience=1)
    world.prlctl("resume", "vm")
    assert world.reached("10.77.0.2")
    assert "net.classful.traffic:\t1 " in world.prlctl("statistics", "vm")
    assert "10.77.0.2" in world.prlctl("list", "-a", "vm")
    world.prlctl("stop", "vm", "--kill")
    assert world.links() == before
    # An address that somebody has, when it is given and when the machine starts.
    refused = world.prlctl("set", "vm", "--ipadd", "10.77.0.1", code=255)
    assert "in use" in refused
    world.prlctl("set", "vm", "--ipadd", "10.99.0.50")
    world.at(world.outside, "ip", "addr", "add", "10.99.0.50/32", "dev", "up0")
    assert "is in use on the network by" in world.prlctl("start", "vm", code=255)
    assert "stopped" in world.prlctl("status", "vm")
    assert world.links() == before
