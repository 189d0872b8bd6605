"""Virtual machines move between two nodes over a real ssh: stopped, suspended, while they run."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tinyguest import tiny_iso
from twonodes import Side, TwoNodes, busybox_root, busybox_tar, two_nodes, wait_for

__all__ = ["busybox_root", "busybox_tar", "tiny_iso", "two_nodes"]

pytestmark = pytest.mark.requires("root", "sshd", "program:qemu-system-x86_64", "program:qemu-img")

ADDRESS = "10.99.0.60"
SLOTS = 40
# Writes numbered blocks round and round, each flushed before it is counted.
WRITE = f"""i=0
while [ ! -e /run/stop ]; do
    i=$((i + 1))
    printf %065536d $i | dd of=/dev/sda bs=64k seek=$((i % {SLOTS})) conv=fsync,notrunc 2>/dev/null
    echo $i >/run/new; mv /run/new /run/count
done
echo done >/run/stopped
"""
# Reads the last blocks from the disk and prints how many of them are right.
READ = f"""echo 3 >/proc/sys/vm/drop_caches
last=$(cat /run/count); i=$((last - {SLOTS} + 1)); good=0
while [ $i -le $last ]; do
    want=$(printf %065536d $i | md5sum)
    got=$(dd if=/dev/sda bs=64k skip=$((i % {SLOTS})) count=1 2>/dev/null | md5sum)
    [ "$want" = "$got" ] && good=$((good + 1))
    i=$((i + 1))
done
echo right $good
"""


class Machine:
    """A machine `vm1` of the tiny guest on node a, with a small disk and a card in "lan"."""

    def __init__(self, nodes: TwoNodes, iso: Path) -> None:
        self.nodes = nodes
        self.at = nodes.a
        nodes.lan_networks()
        prlctl = nodes.a.prlctl
        prlctl("create", "vm1", "--vmtype", "vm", "-d", "debian", "--no-hdd")
        prlctl("set", "vm1", "--memsize", "192", "--cpus", "1")
        prlctl("set", "vm1", "--device-add", "hdd", "--size", "64M")
        prlctl("set", "vm1", "--device-set", "cdrom0", "--image", os.fspath(iso))
        prlctl("set", "vm1", "--device-add", "net", "--network", "lan", "--ipadd", f"{ADDRESS}/24")

    @property
    def other(self) -> Side:
        return self.nodes.b if self.at is self.nodes.a else self.nodes.a

    def boot(self) -> None:
        """Start it, give it its address, have it echo on port 7777."""
        self.at.prlctl("start", "vm1")
        self.wait()
        self.inside(f"ip addr add {ADDRESS}/24 dev eth0; ip link set eth0 up")
        self.inside("nc -ll -p 7777 -e /bin/cat >/dev/null 2>&1 </dev/null &")

    def load(self) -> None:
        """Have it write to its disk all the time."""
        self.at.cli("prlctl", "exec", "vm1", f"cat >/run/write <<'END'\n{WRITE}\nEND")
        self.inside("sh /run/write >/dev/null 2>&1 </dev/null &")
        wait_for(lambda: self.count() > SLOTS, 120)

    def wait(self) -> None:
        argv = self.at.argv("prlctl", "exec", "vm1", "true")
        deadline = time.monotonic() + 150

        def answers() -> bool:
            return not subprocess.run(
                argv, env=self.at.env, capture_output=True, check=False
            ).returncode

        while not answers():
            assert time.monotonic() < deadline, "the guest does not boot"
            time.sleep(0.3)

    def inside(self, command: str) -> str:
        return self.at.prlctl("exec", "vm1", command)

    def count(self) -> int:
        return int(self.inside("cat /run/count 2>/dev/null || echo 0"))

    def whole(self) -> None:
        """Every block that was counted is on the disk."""
        self.inside("touch /run/stop")
        wait_for(lambda: "done" in self.inside("cat /run/stopped 2>/dev/null; true"), 60)
        self.at.cli("prlctl", "exec", "vm1", f"cat >/run/read <<'END'\n{READ}\nEND")
        assert self.inside("sh /run/read") == f"right {SLOTS}\n"

    def move(self, *options: str) -> str:
        """Migrate it to the other node."""
        here, there = self.at, self.other
        ssh = f"-F {self.nodes.ssh_config}"
        out = here.prlctl("migrate", *options, "--ssh", ssh, "vm1", there.name)
        assert here.state("vm1") == ""
        self.at = there
        return out


def test_live(two_nodes: TwoNodes, tiny_iso: Path) -> None:
    """A connection from outside, its memory and its disk go on; there and back."""
    machine = Machine(two_nodes, tiny_iso)
    machine.boot()
    machine.load()
    with two_nodes.talk(ADDRESS, 7777) as talk:
        talk.exchange()
        out = machine.move()
        assert "stood still" in out, out
        assert machine.at.state("vm1") == "running"
        talk.exchange()
        before = machine.count()
        machine.move()
        talk.exchange()
        assert machine.count() >= before
    machine.whole()
