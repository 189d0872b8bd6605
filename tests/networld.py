"""A node in a network namespace of its own, and an outside world in another one.

    outside <prefix>o                       node <prefix>n (vzd, keeper, bridges, nftables)
      up0  10.99.0.2/24, fd99::2/64  ----     up0  10.99.0.1/24, fd99::1/64, forwards
      routes to 10.77.0.0/16, fd77::/32 by the node

The machine's own network is never touched, and no packet leaves these namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from pyvz.cli import client
from pyvz.container.client import KeeperClient
from pyvz.linux import cgroup
from pyvz.store.paths import Paths
from realnode import end

__all__ = ["NetWorld", "busybox_root", "busybox_tar", "end", "networld"]

SOURCE = Path(client.__file__).resolve().parents[2]
LAUNCH = (
    f"import sys; sys.path.insert(0, {os.fspath(SOURCE)!r}); "
    "from pyvz.cli.{} import main; sys.exit(main(sys.argv[1:]))"
)
TEMPLATE = "busybox-1-x86_64"
NODE4, OUTSIDE4 = "10.99.0.1", "10.99.0.2"
NODE6, OUTSIDE6 = "fd99::1", "fd99::2"
PATIENCE = 60  # seconds for an answer that is due

# What udhcpc(8) runs inside: the least that a lease can be good for.
LEASED = """\
#!/bin/sh
case "$1" in
bound|renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    echo "router=$router dns=$dns" >/lease ;;
esac
"""


class NetWorld:
    """A node below a temporary root, its command lines, and the outside world."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = f"{root.name}n"
        self.outside = f"{root.name}o"
        self.env = {**os.environ, "PYVZ_ROOT": os.fspath(root), "PYVZ_PYTHON": sys.executable}

    def wire(self) -> None:
        """Make both namespaces and the cable between them."""
        for name in (self.node, self.outside):
            run("ip", "netns", "add", name)
            self.at(name, "ip", "link", "set", "lo", "up")
        self.at(
            self.node, "ip", "link", "add", "up0", "type", "veth", "peer", "up0", "netns",
            self.outside,
        )  # fmt: skip
        for name, four, six in ((self.node, NODE4, NODE6), (self.outside, OUTSIDE4, OUTSIDE6)):
            self.at(name, "ip", "addr", "add", f"{four}/24", "dev", "up0")
            self.at(name, "ip", "addr", "add", f"{six}/64", "dev", "up0", "nodad")
            self.at(name, "ip", "link", "set", "up0", "up")
        self.at(self.outside, "ip", "route", "add", "10.77.0.0/16", "via", NODE4)
        self.at(self.outside, "ip", "route", "add", "fd77::/32", "via", NODE6)
        self.at(self.node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.at(self.node, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")

    def at(self, where: str, *argv: str, code: int | None = 0, data: str = "") -> str:
        """Run a program in a namespace; code None: any exit status will do."""
        return run("nsenter", f"--net=/run/netns/{where}", *argv, code=code, data=data)

    def prlctl(self, *words: str, code: int | None = 0) -> str:
        return self.cli("prlctl", *words, code=code)

    def vzctl(self, *words: str, code: int = 0) -> str:
        return self.cli("vzctl", *words, code=code)

    def cli(self, program: str, *words: str, code: int | None = 0) -> str:
        """Run a command line of ours at the node; a failure's stderr is in what it returns."""
        argv = [sys.executable, "-IS", "-c", LAUNCH.format(program), *words]
        where = f"--net=/run/netns/{self.node}"
        return run("nsenter", where, *argv, code=code, env=self.env)

    def create(self, name: str, *options: str, start: bool = True, layout: str = "") -> str:
        """Make a container of busybox with `prlctl set` OPTIONS; returns its uuid."""
        if layout:
            self.vzctl("create", name, "--ostemplate", TEMPLATE, "--layout", layout)
        else:
            self.prlctl("create", name, "--vmtype", "ct", "--ostemplate", TEMPLATE)
        if options:
            self.prlctl("set", name, *options)
        if start:
            self.prlctl("start", name)
        return self.uuid(name)

    def plugged(self, name: str, network: str) -> None:
        """Make a container with an interface in a network, and a lease for it."""
        self.create(name, "--device-add", "net", "--network", network, "--dhcp", "yes")
        self.inside(name, f"cat >/leased <<'X'\n{LEASED}X\n")
        self.inside(name, "chmod", "755", "/leased")
        self.inside(name, "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "20", "-s", "/leased")

    def uuid(self, name: str) -> str:
        """Return the uuid of an environment."""
        return Path(os.readlink(self.root / f"etc/vz/names/{name}")).stem

    def inside(self, name: str, *argv: str, code: int | None = 0) -> str:
        """Run a program in a container."""
        return self.cli("prlctl", "exec", name, *argv, code=code)  # type: ignore[arg-type]

    def near(self, name: str, *argv: str, code: int | None = None) -> str:
        """Run a program of the node in a container's network: a tenth of what inside() takes.

        "" while the container is on its way.
        """
        try:
            return run(*self.into(name), *argv, code=code)
        except (OSError, KeyError, ValueError):
            return ""

    def into(self, name: str) -> list[str]:
        """The words before a program that runs in a container's network, or outside ("")."""
        if not name:
            return ["nsenter", f"--net=/run/netns/{self.outside}"]
        state = json.loads((self.root / f"run/pyvz/state/{self.uuid(name)}.json").read_text())
        return ["nsenter", f"--net=/proc/{state['pid']}/ns/net"]

    def pings(self, name: str, target: str, *more: str, patience: int = PATIENCE) -> bool:
        """Whether a container gets an answer from TARGET."""
        return answered(
            lambda *words: self.near(name, "busybox", *words), target, *more, patience=patience
        )

    def reached(self, target: str, *, patience: int = PATIENCE) -> bool:
        """Whether the outside world gets an answer from TARGET."""
        return answered(
            lambda *words: self.at(self.outside, "busybox", *words, code=None), target,
            patience=patience,
        )  # fmt: skip

    def answering(self, *asked: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Which of (container or "" for the outside world, target, options of ping) get an answer.

        For what must not be: all are asked at once, since nobody is told when silence is over.
        """
        asking = [
            subprocess.Popen(
                [*self.into(name), "busybox", ping(target), "-c", "2", "-W", "1", *more, target],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for name, target, *more in asked
        ]  # fmt: skip
        told = [each.communicate(timeout=200)[0] for each in asking]
        assert all(b"packets transmitted" in text or b"sendto" in text for text in told), told
        return [
            which
            for which, text in zip(asked, told, strict=True)
            if b"packets received" in text and b" 0 packets received" not in text
        ]

    def rules(self) -> str:
        return self.at(self.node, "nft", "list", "ruleset")

    def links(self) -> list[str]:
        """The names of the node's links but lo."""
        found = json.loads(self.at(self.node, "ip", "-j", "link"))
        return sorted(each["ifname"] for each in found if each["ifname"] != "lo")

    def vzd(self) -> int:
        return int((self.root / "run/pyvz/vzd.lock").read_text())

    def end(self) -> None:
        """Delete the environments, end vzd and the keeper, remove the namespaces."""
        try:
            for row in json.loads(self.prlctl("list", "-a", "-j")):
                self.prlctl("delete", row["uuid"], "--force")
            keeper = KeeperClient(self.root / "run/pyvz/keeper.sock")
            try:
                pid = int(keeper.call("ping").data["pid"])
            finally:
                keeper.close()
            end(self.vzd(), signal.SIGTERM)
            end(pid, signal.SIGKILL)
            cgroup.detect(f"{Paths(self.root).instance}.slice").remove_parent()
        finally:
            for name in (self.node, self.outside):
                run("ip", "netns", "del", name, code=None)


def run(*argv: str, code: int | None = 0, data: str = "", env: dict[str, str] | None = None) -> str:
    """Run a program and check its exit status; a failure's stderr is in what it returns."""
    done = subprocess.run(
        argv, input=data, capture_output=True, text=True, timeout=550, check=False, env=env
    )
    assert code is None or done.returncode == code, (argv[-6:], done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stdout + done.stderr


def ping(target: str) -> str:
    """The applet of busybox for an address."""
    return "ping6" if ":" in target else "ping"


def answered(
    run_there: Callable[..., str], target: str, *more: str, patience: int = PATIENCE
) -> bool:
    """Whether TARGET answers busybox' ping within PATIENCE seconds.

    It is asked again each second: that one packet is lost on a machine that is busy says nothing.
    """
    deadline = time.monotonic() + patience
    while "1 packets received" not in run_there(ping(target), "-c", "1", "-W", "1", *more, target):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def wait_for(condition: object, timeout: float = 120.0) -> None:
    """Wait until the callable says yes; fail otherwise."""
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def networld(short_root: Path, busybox_tar: Path) -> Iterator[NetWorld]:
    made = NetWorld(short_root)
    cache = short_root / "vz/template/cache"
    cache.mkdir(parents=True)
    shutil.copy(busybox_tar, cache / f"{TEMPLATE}.plain.tar.zst")
    (short_root / "etc/vz").mkdir(parents=True)
    (short_root / "etc/vz/vz.conf").write_text('VELAYOUT="simfs"\n')
    try:
        made.wire()
        yield made
    finally:
        made.end()
