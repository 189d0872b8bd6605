"""A virtual machine from a template: it boots, has its name and address, and answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from images import CACHE, key, locked
from networld import LAUNCH, NetWorld, busybox_root, busybox_tar, networld
from pyvz.template import machinetree

__all__ = ["busybox_root", "busybox_tar", "networld"]
pytestmark = [
    pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img", "program:mmdebstrap"),
    pytest.mark.long,
    pytest.mark.timeout(3600),
]
NAME = "debian-12-x86_64.qcow2"
# What is in it decides under which name it is kept.
KEPT = CACHE / f"vm-{key(Path(machinetree.__file__).read_text())}-{NAME}"
BUILD, BOOT = 1500, 1500  # seconds; emulated, on a machine that others use


@pytest.fixture
def world(networld: NetWorld) -> NetWorld:
    """A node whose golden image is kept from one run to the next."""
    with locked("vm-template"):
        place = networld.root / "vz/template/vm"
        place.mkdir(parents=True)
        if KEPT.exists():
            shutil.copy(KEPT, place / NAME)
    return networld


def prlctl(world: NetWorld, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    # The node's own network namespace has no way out, and a build needs the mirror.
    argv = ["nsenter", f"--net=/run/netns/{world.node}", sys.executable, "-IS", "-c"]
    argv += [LAUNCH.format("prlctl"), *words]
    return subprocess.run(
        argv,
        env=world.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_a_machine_from_a_template_needs_no_hand(world: NetWorld) -> None:
    if not (world.root / "vz/template/vm" / NAME).exists():
        build(world)
    world.create("ct", "--ipadd", "10.77.0.1")
    key = world.root / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = ("--ostemplate", "debian-12", "--ssh-keys", f"{key}.pub")
    world.prlctl("create", "vm", "--vmtype", "vm", *words)
    world.prlctl("set", "vm", "--device-add", "net", "--type", "routed", "--ipadd", "10.77.0.2")
    world.prlctl("set", "vm", "--hostname", "first.example.org")
    world.prlctl("start", "vm")
    deadline = time.monotonic() + BOOT
    while (done := prlctl(world, "exec", "vm", "uname -a")).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(2)
    assert done.stdout.startswith("Linux first")
    assert world.pings("ct", "10.77.0.2", patience=300)
    assert world.reached("10.77.0.2")
    assert "0% packet loss" in world.prlctl("exec", "vm", "ping -c 5 -i 0.5 10.77.0.1")
    keys(world, key)
    told(world)
    plugged_in(world)
    # It has grown into its disk, and has keys of its own.
    size = int(world.prlctl("exec", "vm", "df --output=size -k / | tail -n 1"))
    assert size > 50 << 20
    assert "ssh_host_" in world.prlctl("exec", "vm", "ls /etc/ssh")
    world.prlctl("set", "vm", "--userpasswd", "root:secret")
    assert "root:$" in world.prlctl("exec", "vm", "grep ^root /etc/shadow")
    world.prlctl("stop", "vm")
    assert "stopped" in world.prlctl("status", "vm")


def keys(world: NetWorld, key: Path) -> None:
    """Who has the key logs in."""
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-i", os.fspath(key)]
    argv = ["nsenter", f"--net=/run/netns/{world.node}", "ssh", *options, "root@10.77.0.2"]
    deadline = time.monotonic() + 300
    while True:
        done = subprocess.run(
            [*argv, "echo in"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
        assert time.monotonic() < deadline, done.stderr
        time.sleep(2)
    assert done.stdout == "in\n"


def told(world: NetWorld) -> None:
    """What is set while it runs is in force inside at once, and after it has booted anew."""
    world.prlctl("set", "vm", "--hostname", "second.example.org", "--nameserver", "10.77.0.9")
    assert world.prlctl("exec", "vm", "hostname") == "second.example.org\n"
    world.prlctl("set", "vm", "--ipadd", "10.77.0.5")
    assert world.reached("10.77.0.5", patience=100)
    addresses = world.prlctl("list", "vm", "-H", "-o", "ip").split()
    assert {"10.77.0.2", "10.77.0.5"} <= set(addresses)


def plugged_in(world: NetWorld) -> None:
    """What is plugged in while it runs is used without a hand on it."""
    more = {"ls /sys/class/net | wc -l": ("net", "--type", "routed", "--ipadd", "10.77.0.3")}
    more["ls /sys/block | wc -l"] = ("hdd", "--size", "64M")
    for count, device in more.items():
        there = number(world, count)
        world.prlctl("set", "vm", "--device-add", *device)
        deadline = time.monotonic() + 300
        while number(world, count) != there + 1:
            assert time.monotonic() < deadline, world.prlctl("exec", "vm", "dmesg | tail -20")
            time.sleep(1)
    cpus = number(world, "nproc")
    before = number(world, "awk '/^MemTotal/ {print $2}' /proc/meminfo")
    world.prlctl("set", "vm", "--cpus", str(cpus + 1), "--memsize", str(before // 1024 + 600))
    deadline = time.monotonic() + 300
    while (
        number(world, "nproc") != cpus + 1
        or number(world, "awk '/^MemTotal/ {print $2}' /proc/meminfo") < before + 300_000
    ):
        told = world.prlctl("exec", "vm", "nproc; head -3 /proc/meminfo")
        assert time.monotonic() < deadline, told
        time.sleep(1)


def number(world: NetWorld, command: str) -> int:
    return int(world.prlctl("exec", "vm", command))


def build(world: NetWorld) -> None:
    """Make the golden image on a node that has a way out, and keep it."""
    root = Path(os.fspath(world.root))
    env = {**world.env}
    code = (
        "import sys; from pathlib import Path; from pyvz.store.paths import Paths; "
        "from pyvz.store import defaults; from pyvz.store.registry import Registry; "
        "from types import SimpleNamespace; from pyvz.model.task import NoProgress; "
        "from pyvz.operations import machinetemplate; p = Paths(Path(sys.argv[1])); "
        "defaults.seed(p); n = SimpleNamespace(paths=p, registry=Registry(p)); "
        "print(machinetemplate.ensure(n, 'debian-12', NoProgress()))"
    )
    subprocess.run([sys.executable, "-c", code, root], env=env, check=True, timeout=BUILD)
    with locked("vm-template"):
        fresh = KEPT.with_name(f"{KEPT.name}.new")
        shutil.copy(root / "vz/template/vm" / NAME, fresh)
        fresh.rename(KEPT)
