"""virsh over a virtual machine: the tiny guest, emulated, with a scripted tour of commands."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "world"]
pytestmark = pytest.mark.requires(
    "root", "program:virsh", "program:qemu-system-x86_64", "program:qemu-img"
)

# (words of virsh, what its output has to contain); in this order, on one machine.
TOUR = [
    ("list --all", r"vm1 +shut off"),
    ("dominfo vm1", r"OS Type: +hvm"),
    ("dominfo vm1", r"Max memory: +196608 KiB"),
    ("dumpxml vm1", r"<type [^>]*>hvm</type>"),
    ("dumpxml vm1", r'<graphics type="vnc" port="-1" autoport="yes"'),
    ("domblklist vm1", r"sda +.*harddisk.hdd"),
    ("domblkinfo vm1 sda", r"Capacity: +68719476736"),
    ("setmaxmem vm1 256M --config", ""),
    ("setmem vm1 256M --config", ""),
    ("dominfo vm1", r"Max memory: +262144 KiB"),
    ("start vm1", "started"),
    ("domstate vm1 --reason", r"running \(booted\)"),
    ("domid vm1", r"^\d+$"),
    ("domcontrol vm1", "ok"),
    ("dumpxml vm1", r'<graphics type="vnc" port="59\d\d" autoport="yes"'),
    ("vncdisplay vm1", r":\d+"),
    ("domstats vm1", r"block\.count=2"),
    ("domstats vm1", r"block\.1\.rd\.bytes=\d+"),
    ("domblkstat vm1 sda", r"rd_req \d+"),
    ("domblkstat vm1", r"rd_bytes \d+"),
    ("dommemstat vm1", r"rss \d+"),
    ("cpu-stats vm1 --total", r"cpu_time +[\d.]+ seconds"),
    ("vcpuinfo vm1", "CPU Affinity"),
    ("vcpucount vm1", "maximum"),
    ("vcpupin vm1", "VCPU +CPU Affinity"),
    ("memtune vm1", r"hard_limit *: 262144"),
    ("schedinfo vm1 --set cpu_shares=2000", r"cpu_shares +: 2000"),
    ("blkiotune vm1 --weight 800", ""),
    ("domiflist vm1", "Interface"),
    ("setvcpus vm1 2 --live", ""),
    ("vcpucount vm1 --current --live", "2"),
    ("suspend vm1", "suspended"),
    ("domstate vm1 --reason", r"paused \(user\)"),
    ("resume vm1", "resumed"),
    ("reset vm1", "reset"),
    ("autostart vm1", "marked as autostarted"),
    ("managedsave vm1", "saved"),
    ("domstate vm1 --reason", r"shut off \(saved\)"),
    ("start vm1", "started"),
    ("snapshot-create-as vm1 one", "created"),
    ("snapshot-list vm1", "running"),
    ("destroy vm1", "destroyed"),
    ("vncdisplay vm1", "", 1),
]


@pytest.fixture
def virsh(world: World, tiny_iso: Path) -> Iterator[Virsh]:
    world.run("prlctl", "create", "vm1", "--vmtype", "vm", "-d", "debian")
    world.run("prlctl", "set", "vm1", "--memsize", "192", "--cpus", "1")
    world.run("prlctl", "set", "vm1", "--device-set", "cdrom0", "--image", os.fspath(tiny_iso))
    world.run("prlctl", "set", "vm1", "--vnc-mode", "auto", "--vnc-passwd", "secret")
    yield Virsh(world, quiet=False)
    world.run("prlctl", "delete", "vm1", "--force")


def test_tour_of_a_machine(virsh: Virsh) -> None:
    wrong = []
    for words, pattern, *code in TOUR:
        try:
            printed = virsh(*str(words).split(" "), code=int(code[0]) if code else 0)
        except AssertionError as error:
            wrong.append(f"{words}: {error}"[:400])
            continue
        if not re.search(str(pattern), printed, re.MULTILINE):
            wrong.append(f"{words}: no {pattern} in:\n{printed}")
    assert not wrong, "\n".join(wrong)


def test_a_machine_obeys_the_power_button(world: World, virsh: Virsh) -> None:
    virsh("start", "vm1")
    _await_agent(world)
    virsh("shutdown", "vm1", "--mode", "acpi")
    assert "shut off" in virsh("domstate", "vm1")
    virsh("undefine", "vm1")
    home = next((world.root / "vz/vmprivate").iterdir())
    world.run("prlctl", "register", os.fspath(home))


def _await_agent(world: World) -> None:
    deadline = time.monotonic() + 150
    while "installed" not in re.findall(
        r"GuestTools: state=(\S+)", world.run("prlctl", "list", "-i", "vm1")
    ):
        assert time.monotonic() < deadline, "the guest does not boot"
        time.sleep(0.5)
