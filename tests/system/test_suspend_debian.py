"""A Debian with systemd is suspended and resumed: units, timers, watches, filters, interfaces."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from test_suspend import counted, home, pid_of, status

from images import debian_tar
from networld import SOURCE, NetWorld, answered, busybox_root, busybox_tar, end, run, wait_for
from networld import networld as world

pytestmark = [pytest.mark.requires("criu"), pytest.mark.long]

__all__ = ["busybox_root", "busybox_tar", "debian_tar", "world"]

DEBIAN = "debian-12-x86_64"
TICK = "n=0; while :; do n=$((n+1)); echo $n >/root/m; mv /root/m /root/n; sleep 0.1; done"
RULES = """\
table inet ours {
    set known { type ipv4_addr; elements = { 192.0.2.7 } }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @known counter drop
        tcp dport 99 reject
    }
}
"""
SLOW = 90.0


def boot(world: NetWorld, archive: Path, layout: str) -> None:
    shutil.copy(archive, world.root / f"vz/template/cache/{DEBIAN}.plain.tar.zst")
    world.at(world.node, "ip", "link", "add", "br0", "type", "bridge")
    world.at(world.node, "ip", "addr", "add", "10.88.0.1/24", "dev", "br0")
    world.at(world.node, "ip", "link", "set", "br0", "up")
    world.vzctl("create", "a", "--ostemplate", DEBIAN, "--layout", layout)
    world.prlctl("set", "a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    world.prlctl("set", "a", "--device-add", "net", "--network", "br0", "--ipadd", "10.88.0.2/24")
    world.prlctl("start", "a", "--wait")
    running(world)


def running(world: NetWorld) -> None:
    def up() -> bool:
        said = world.inside("a", "systemctl", "is-system-running", "--wait", code=None)
        return said.strip() == "running"

    wait_for(up, SLOW)


def in_network(world: NetWorld, *argv: str, data: str = "") -> str:
    """Run a program of the node in the container's network namespace."""
    keeper = json.loads((world.root / "run/pyvz/state" / f"{uuid(world)}.json").read_text())
    command = ["nsenter", f"--net=/proc/{keeper['pid']}/ns/net", *argv]
    return subprocess.run(
        command, input=data, text=True, capture_output=True, check=True, timeout=60
    ).stdout


def uuid(world: NetWorld) -> str:
    return str(json.loads(world.prlctl("list", "-a", "-j", "a"))[0]["uuid"])


@pytest.mark.parametrize("layout", ["simfs", "ploop"])
def test_systemd_timers_watches_filters_and_interfaces(
    world: NetWorld, debian_tar: Path, layout: str
) -> None:
    boot(world, debian_tar, layout)
    world.inside("a", f"systemd-run --unit=tick sh -c '{TICK}'")
    later = "--on-active=30 --timer-property=AccuracySec=1s --unit=later"
    world.inside("a", f"systemd-run {later} touch /root/later")
    # A path unit is an inotify watch of systemd's.
    world.inside("a", "systemd-run --path-property=PathExists=/root/go --unit=seen touch /root/saw")
    in_network(world, "nft", "-f", "-", data=RULES)
    in_network(world, "iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "98", "-j", "DROP")
    world.inside("a", "ip", "route", "add", "192.0.2.0/24", "via", "10.88.0.1")
    wait_for(lambda: counted(world) > 2)
    before = counted(world)
    for _ in range(2):
        world.prlctl("suspend", "a")
        assert status(world) == "suspended"
        world.prlctl("resume", "a")
        assert counted(world) >= before
        now = counted(world)
        wait_for(lambda now=now: counted(world) > now)
        running(world)
    assert world.reached("10.77.0.1")
    assert world.reached("fd77::1")
    assert answered(partial(world.at, world.node, "busybox", code=None), "10.88.0.2")
    rules = in_network(world, "nft", "list", "ruleset")
    assert "192.0.2.7" in rules
    assert "tcp dport 99 reject" in rules
    assert "--dport 98 -j DROP" in in_network(world, "iptables-nft-save")
    assert "192.0.2.0/24 via 10.88.0.1" in world.inside("a", "ip", "route")
    world.inside("a", "touch", "/root/go")
    wait_for(lambda: "saw" in world.inside("a", "ls", "/root"), SLOW)
    wait_for(lambda: "later" in world.inside("a", "ls", "/root"), SLOW)
    world.inside("a", "systemctl", "restart", "systemd-logind", "systemd-journald")
    world.prlctl("stop", "a")
    assert status(world) == "stopped"


def test_the_daemons_start_anew_in_between_and_the_node_goes_down(
    world: NetWorld, debian_tar: Path
) -> None:
    boot(world, debian_tar, "simfs")
    world.inside("a", f"systemd-run --unit=tick sh -c '{TICK}'")
    wait_for(lambda: counted(world) > 2)
    world.prlctl("set", "a", "--autostop", "suspend", "--onboot", "auto")
    before = counted(world)
    autostop(world)
    assert status(world) == "suspended"
    assert (home(world) / ".running").exists()
    for victim in ("vzd", "keeper"):
        end(pid_of(world, victim), 9)
    shutil.rmtree(world.root / "run/pyvz/state")  # as after a reboot
    world.prlctl("start", "a")
    assert counted(world) >= before
    now = counted(world)
    wait_for(lambda: counted(world) > now)
    running(world)


def autostop(world: NetWorld) -> None:
    """Do what vzd does when the machine goes down."""
    text = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pyvz.cli.client import connect;"
        "connect().stream('Node.Autostop')"
    )
    where = f"--net=/run/netns/{world.node}"
    run("nsenter", where, sys.executable, "-c", text, str(SOURCE), env=world.env)
