"""Two nodes and a client on one cable, each in a network namespace, with a real sshd at each node.

    lan <p>l: bridge br0 --- node a <p>a  br0 10.99.0.101   vzd, keeper, sshd
                         --- node b <p>b  br0 10.99.0.102   vzd, keeper, sshd
                         --- client <p>c  up0 10.99.0.2

Containers are plugged into br0 of their node (virtual network "lan"), or routed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from leaks import close_node
from networld import LAUNCH, TEMPLATE, end, run, wait_for
from pyvz.container.client import KeeperClient
from pyvz.store.paths import Paths

__all__ = ["TwoNodes", "busybox_root", "busybox_tar", "two_nodes", "wait_for"]

CLIENT = "10.99.0.2"
SSHD = "/usr/sbin/sshd"


COUNT = """i=$(cat /root/counter || echo 0)
while :; do
    i=$((i + 1)); echo $i > /root/new; mv /root/new /root/counter; sleep 0.02
done
"""


def lan_card(address: str) -> tuple[str, ...]:
    """The options of a card in the network "lan"."""
    return ("--device-add", "net", "--network", "lan", "--ipadd", f"{address}/24")


class Side:
    """One node."""

    def __init__(self, world: TwoNodes, name: str, address: str) -> None:
        self.world, self.name, self.address = world, name, address
        self.root = world.root / name
        self.namespace = f"{world.root.name}{name}"
        self.env = {**os.environ, "PYVZ_ROOT": os.fspath(self.root), "PYVZ_PYTHON": sys.executable}
        self.sshd: subprocess.Popen[bytes] | None = None

    def at(self, *argv: str, code: int | None = 0) -> str:
        """Run a program in the node's network namespace."""
        return run("nsenter", f"--net=/run/netns/{self.namespace}", *argv, code=code)

    def argv(self, program: str, *words: str) -> list[str]:
        where = f"--net=/run/netns/{self.namespace}"
        return ["nsenter", where, sys.executable, "-IS", "-c", LAUNCH.format(program), *words]

    def cli(self, program: str, *words: str, code: int | None = 0) -> str:
        """Run a command line of ours at the node."""
        return run(*self.argv(program, *words), code=code, env=self.env)

    def popen(self, program: str, *words: str) -> subprocess.Popen[str]:
        """Start a command line of ours and do not wait."""
        return subprocess.Popen(
            self.argv(program, *words),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def prlctl(self, *words: str, code: int | None = 0) -> str:
        return self.cli("prlctl", *words, code=code)

    def vzmigrate(self, *words: str, code: int | None = 0) -> str:
        """Run vzmigrate with this world's ssh configuration."""
        return self.cli("vzmigrate", f"--ssh=-F {self.world.ssh_config}", *words, code=code)

    def create(self, name: str, *options: str, start: bool = True, layout: str = "simfs") -> str:
        """Make a container of busybox; returns its uuid."""
        self.cli("vzctl", "create", name, "--ostemplate", TEMPLATE, "--layout", layout)
        if options:
            self.prlctl("set", name, *options)
        if start:
            self.prlctl("start", name)
        return str(self.rows(name)[0]["uuid"])

    def create_busy(self, name: str, address: str, *options: str, layout: str = "simfs") -> str:
        """Make and start one that counts into /root/counter and echoes on port 7777.

        The counter is written, flushed, renamed: what is read was acknowledged.
        """
        uuid = self.create(name, *lan_card(address), *options, start=False, layout=layout)
        self.prlctl("mount", name)
        root = self.root / "vz/root" / uuid
        (root / "etc/count").write_text(COUNT)
        with (root / "etc/inittab").open("a") as file:
            file.write("::respawn:/bin/sh /etc/count\n")
            file.write("::respawn:/bin/busybox nc -ll -p 7777 -e /bin/cat\n")
        self.prlctl("umount", name)
        self.prlctl("start", name)
        wait_for(lambda: self.counter(name) > 0)
        return uuid

    def counter(self, name: str) -> int:
        """What the container has counted to, 0 when it has not begun."""
        text = self.inside(name, "cat /root/counter", code=None).strip()
        return int(text) if text.isdigit() else 0

    def rows(self, *names: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.prlctl("list", "-a", "-j", *names))
        return found

    def state(self, name: str) -> str:
        """The state of a container, "" when the node has none of that name."""
        return next((row["status"] for row in self.rows() if row["name"] == name), "")

    def inside(self, name: str, *argv: str, code: int | None = 0) -> str:
        return self.prlctl("exec", name, *argv, code=code)

    def journals(self) -> list[str]:
        """What is half done here: the ends of the records."""
        return [path.read_text()[-300:] for path in (self.root / "var/lib/pyvz/journal").glob("*")]

    def leftovers(self) -> list[str]:
        """What a migration leaves behind that was not cleaned up (yet)."""
        private, run = self.root / "vz/private", self.root / "run/pyvz"
        found = [*private.glob(".*"), *private.glob("*/.migrate*")]
        found += [*(run / "images").glob("*"), *(run / "migrate").glob("*")]
        found += (self.root / "vz/root/.aside").glob("*")
        return [*map(os.fspath, found), *self.journals()]

    def vzd(self) -> int:
        return int((self.root / "run/pyvz/vzd.lock").read_text())

    def keeper(self) -> int:
        client = KeeperClient(self.root / "run/pyvz/keeper.sock")
        try:
            return int(client.call("ping").data["pid"])
        finally:
            client.close()

    def ready(self, tar: Path) -> None:
        """Make the root, the template and the running sshd."""
        cache = self.root / "vz/template/cache"
        cache.mkdir(parents=True)
        shutil.copy(tar, cache / f"{TEMPLATE}.plain.tar.zst")
        (self.root / "etc/vz").mkdir(parents=True)
        (self.root / "etc/vz/vz.conf").write_text('VELAYOUT="simfs"\nSKIP_ARPDETECT="yes"\n')
        ssh = self.root / "ssh"
        ssh.mkdir()
        program = self.root / "bin/vzmdest"
        program.parent.mkdir()
        body = LAUNCH.format("vzmdest").replace("'", '"')
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -IS -c '{body}' \"$@\"\n")
        program.chmod(0o755)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{ssh}/host")
        path = f"{self.root}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        (ssh / "sshd_config").write_text(
            f"ListenAddress {self.address}:22\nHostKey {ssh}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.world.root}/key.pub\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\n"
            f"SetEnv PYVZ_ROOT={self.root} PYVZ_PYTHON={sys.executable} PATH={path}\n"
        )
        self.start_sshd()

    def start_sshd(self) -> None:
        where = f"--net=/run/netns/{self.namespace}"
        argv = ["nsenter", where, SSHD, "-D", "-e", "-f", f"{self.root}/ssh/sshd_config"]
        log = (self.root / "ssh/log").open("ab")
        self.sshd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def stop(self) -> None:
        """Delete the environments, end vzd, keeper and sshd."""
        try:
            for row in json.loads(self.prlctl("list", "-a", "-j")):
                self.prlctl("delete", row["uuid"], "--force")
            keeper = self.keeper()
            end(self.vzd(), signal.SIGTERM)
            end(keeper, signal.SIGKILL)
        finally:
            if self.sshd is not None:
                self.sshd.terminate()
                self.sshd.wait(120)
            name = f"{Paths(self.root).instance}.slice"
            for path, directories, _ in os.walk("/sys/fs/cgroup"):  # others come and go meanwhile
                if name in directories:
                    Path(path, name).rmdir()
            close_node(self.root)


class TwoNodes:
    """Nodes a and b, the client, and the cable between them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lan, self.client = f"{root.name}l", f"{root.name}c"
        self.a = Side(self, "a", "10.99.0.101")
        self.b = Side(self, "b", "10.99.0.102")
        self.ssh_config = root / "ssh_config"

    def wire(self) -> None:
        """Make the namespaces, the bridges and the cables."""
        self.root.chmod(0o755)  # CRIU goes through it as a container's root, as it does through /
        spaces = {"a": self.a.namespace, "b": self.b.namespace, "c": self.client}
        for name in (self.lan, *spaces.values()):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        ip("-n", self.lan, "link", "add", "br0", "type", "bridge")
        ip("-n", self.lan, "link", "set", "br0", "up")
        for name, space in spaces.items():
            ip("-n", self.lan, "link", "add", f"v{name}", "type", "veth", "peer", "up0", "netns",
               space)  # fmt: skip
            ip("-n", self.lan, "link", "set", f"v{name}", "master", "br0", "up")
            ip("-n", space, "link", "set", "up0", "up")
        ip("-n", self.client, "addr", "add", f"{CLIENT}/24", "dev", "up0")
        for number, side in enumerate((self.a, self.b)):
            mac = f"02:00:00:00:00:0{number + 1}"
            ip("-n", side.namespace, "link", "add", "br0", "address", mac, "type", "bridge")
            ip("-n", side.namespace, "link", "set", "br0", "up")
            ip("-n", side.namespace, "link", "set", "up0", "master", "br0")
            ip("-n", side.namespace, "addr", "add", f"{side.address}/24", "dev", "br0")
            side.at("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def keys(self) -> None:
        """Make the key, and the configuration of ssh with both hosts in it."""
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.root}/key")
        known = ""
        for side in (self.a, self.b):
            words = (side.root / "ssh/host.pub").read_text().split()
            known += f"{side.address} {words[0]} {words[1]}\n"
        (self.root / "known_hosts").write_text(known)
        self.ssh_config.write_text(
            f"IdentityFile {self.root}/key\nIdentitiesOnly yes\nUser root\n"
            f"UserKnownHostsFile {self.root}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\n"
            f"Host a\n  HostName {self.a.address}\nHost b\n  HostName {self.b.address}\n"
        )

    def lan_networks(self) -> None:
        """Make br0 a virtual network "lan" of both nodes."""
        for side in (self.a, self.b):
            side.cli("prlsrvctl", "net", "add", "lan", "-i", "br0")

    def talk(self, address: str, port: int) -> Talk:
        """Connect from the client."""
        return Talk(self.client, address, port)

    def cut(self, *, cut: bool = True) -> None:
        """Pull the cable between the nodes out, or put it back."""
        ip("-n", self.lan, "link", "set", "vb", "down" if cut else "up")

    def end(self) -> None:
        with contextlib.ExitStack() as stack:
            for name in (self.lan, self.a.namespace, self.b.namespace, self.client):
                stack.callback(run, "ip", "netns", "del", name, code=None)
            stack.callback(self.b.stop)
            stack.callback(self.a.stop)
            self.cut(cut=False)


_TALKER = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)
sock.settimeout(120)
print("connected", flush=True)
for line in sys.stdin:
    word = line.encode()
    sock.sendall(word)
    got = b""
    while len(got) < len(word):
        piece = sock.recv(100)
        if not piece:
            sys.exit("the connection was closed")
        got += piece
    print(got.decode(), end="", flush=True)
"""


class Talk:
    """One TCP connection of the client that must never break; the other end echoes."""

    def __init__(self, namespace: str, address: str, port: int) -> None:
        argv = [
            *("nsenter", f"--net=/run/netns/{namespace}"),
            *(sys.executable, "-c", _TALKER, address, str(port)),
        ]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._number = 0

    def __enter__(self) -> Talk:
        assert self._line() == "connected\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def exchange(self) -> None:
        """Send a word and get it back."""
        self._number += 1
        assert self._process.stdin is not None
        self._process.stdin.write(f"word {self._number}\n")
        self._process.stdin.flush()
        assert self._line() == f"word {self._number}\n"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def ip(*words: str) -> None:
    run("ip", *words)


@pytest.fixture
def two_nodes(short_root: Path, busybox_tar: Path) -> Iterator[TwoNodes]:
    made = TwoNodes(short_root)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    try:
        made.wire()
        for side in (made.a, made.b):
            side.root.mkdir()
            side.ready(busybox_tar)
        made.keys()
        yield made
    finally:
        made.end()
