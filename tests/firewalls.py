"""Firewalls of others beside a node in a namespace (networld.py): the real firewalld, and Docker's.

firewalld runs in the node's network namespace, with a system bus and a configuration of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyvz
from networld import SOURCE, NetWorld, run, wait_for

ZONE = Path(pyvz.__file__).parent / "data/firewalld"
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><policy context="default">
<allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/>
<allow receive_type="method_call"/><allow receive_sender="*"/></policy></busconfig>
"""


class Firewalld:
    """firewalld of one node; `env` is for programs that shall find it."""

    def __init__(self, world: NetWorld) -> None:
        self.world = world
        self.home = world.root / "firewalld"
        self.home.mkdir()
        self.bus = self.home / "bus"
        self.env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.bus}"}
        self._running: list[subprocess.Popen[bytes]] = []

    def start_bus(self) -> None:
        """Start a bus of its own."""
        conf = self.home / "bus.conf"
        conf.write_text(BUS.format(path=self.bus))
        self._spawn("dbus-daemon", f"--config-file={conf}", "--nofork", "--nopidfile")
        wait_for(self.bus.exists)

    def start(self) -> None:
        """Start firewalld, and wait until its rules are there."""
        conf = self.home / "conf"
        conf.mkdir(exist_ok=True)
        shipped = (
            self.home / "shipped"
        )  # without a zone of ours that script/bootstrap has put there
        if not shipped.exists():
            shutil.copytree("/usr/lib/firewalld", shipped, ignore=shutil.ignore_patterns("pyvz*"))
        (conf / "firewalld.conf").write_text("DefaultZone=public\n")
        self._spawn(
            "nsenter", f"--net=/run/netns/{self.world.node}", "/usr/sbin/firewalld", "--nofork",
            "--nopid", f"--system-config={conf}", f"--default-config={shipped}",
            f"--log-file={self.home}/log",
        )  # fmt: skip
        wait_for(lambda: self.cmd("--state", code=None).startswith("running"), 60)

    def stop(self) -> None:
        """End firewalld; its rules go with it."""
        self._end(self._running.pop())

    def install_zone(self) -> None:
        """Do what docs/networking.md and script/bootstrap do."""
        shutil.copytree(ZONE, self.home / "conf", dirs_exist_ok=True)

    def cmd(self, *words: str, code: int | None = 0) -> str:
        """Run firewall-cmd."""
        return run("firewall-cmd", *words, code=code, env=self.env)

    def rules(self) -> list[str]:
        """The lines of its table; their order is another one each time that it is reloaded."""
        listed = self.world.at(
            self.world.node, "nft", "list", "table", "inet", "firewalld", code=None
        )
        return sorted(listed.splitlines())

    def end(self) -> None:
        """End it and its bus."""
        while self._running:
            self._end(self._running.pop())

    def _spawn(self, *argv: str) -> None:
        with (self.home / "out").open("ab") as out:
            self._running.append(
                subprocess.Popen(
                    argv, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            )

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(120)


@contextmanager
def firewalld(world: NetWorld) -> Iterator[Firewalld]:
    """A bus, and a firewalld that has not been started."""
    made = Firewalld(world)
    try:
        made.start_bus()
        yield made
    finally:
        made.end()


@contextmanager
def docker(world: NetWorld) -> Iterator[list[str]]:
    """dockerd at the node, with all of its files below the root; yields the client's first words.

    It has switched forwarding on itself, so the policy of its FORWARD is to drop.
    """
    home = world.root / "docker"
    home.mkdir(exist_ok=True)
    (home / "daemon.json").write_text("{}")
    for key in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        world.at(world.node, "sysctl", "-qw", f"{key}=0")
    with (home / "log").open("ab") as log:
        running = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{world.node}", "dockerd",
             f"--data-root={home}/data", f"--exec-root={home}/exec", f"--pidfile={home}/pid",
             f"--host=unix://{home}/sock", "--storage-driver=vfs",
             f"--config-file={home}/daemon.json"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    client = ["docker", "--host", f"unix://{home}/sock"]
    try:
        wait_for(lambda: "Server Version" in run(*client, "info", code=None), 120)
        yield client
    finally:
        running.terminate()
        running.wait(120)


def start_vzd(world: NetWorld, env: dict[str, str]) -> None:
    """Start vzd at the node with an environment of its own, as a unit file would."""
    run(
        "nsenter", f"--net=/run/netns/{world.node}", sys.executable, "-P", "-m",
        "pyvz.daemon.main", "--root", os.fspath(world.root),
        env={**env, "PYTHONPATH": os.fspath(SOURCE)},
    )  # fmt: skip


# What dockerd 20.10 makes (iptables-nft), when it has switched forwarding on by itself.
DOCKER = """
table ip filter {
  chain DOCKER { }
  chain DOCKER-ISOLATION-STAGE-1 {
    iifname "docker0" oifname != "docker0" counter jump DOCKER-ISOLATION-STAGE-2
    counter return
  }
  chain DOCKER-ISOLATION-STAGE-2 { oifname "docker0" counter drop; counter return; }
  chain DOCKER-USER { counter return; }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
    counter jump DOCKER-ISOLATION-STAGE-1
    oifname "docker0" ct state related,established counter accept
    oifname "docker0" counter jump DOCKER
    iifname "docker0" oifname != "docker0" counter accept
    iifname "docker0" oifname "docker0" counter accept
  }
}
"""
