"""libvirt's own clients, unmodified, on a node with containers of busybox."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]

pytestmark = pytest.mark.requires("root", "program:virsh")


class Virsh:
    """virsh on the node's own socket."""

    def __init__(self, node: World, *, readonly: bool = False, quiet: bool = True) -> None:
        name = "virtvzd-sock-ro" if readonly else "virtvzd-sock"
        self.uri = f"vz+unix:///system?socket={node.root}/run/libvirt/{name}"
        self.options = ["--readonly"] * readonly + ["-q"] * quiet

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["virsh", "-c", self.uri, *self.options, *words],
            env={**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout.strip() if code == 0 else done.stderr.strip()


@pytest.fixture
def virsh(world: World) -> Virsh:
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    return Virsh(world)


def test_a_life(world: World, virsh: Virsh) -> None:
    uuid = virsh("domuuid", "ct1")
    assert re.search(r"- +ct1 +shut off", virsh("list", "--all"))
    virsh("start", "ct1")
    assert re.search(r"\d+ +ct1 +running", virsh("list"))
    number = virsh("domid", "ct1")
    assert virsh("domname", number) == virsh("domname", uuid) == "ct1"
    assert virsh("domstate", "ct1", "--reason") == "running (booted)"
    assert "ct1" in virsh("list", "--name")
    assert virsh("list", "--name", "--inactive") == ""
    virsh("suspend", "ct1")
    assert world.run("prlctl", "status", "ct1").split()[-1] == "paused"
    virsh("resume", "ct1")
    virsh("reboot", "ct1")
    assert virsh("domid", "ct1") != number
    assert "already active" in virsh("start", "ct1", code=1)
    virsh("destroy", "ct1")
    assert "not running" in virsh("shutdown", "ct1", code=1)
    home = world.run("prlctl", "list", "-H", "-o", "home", "ct1").strip()
    virsh("undefine", "ct1")
    assert "failed to get domain" in virsh("dominfo", "ct1", code=1)
    world.run("prlctl", "register", home, "--preserve-uuid")
    assert virsh("domuuid", "ct1") == uuid


def test_a_numeric_name_is_its_number(world: World, virsh: Virsh) -> None:
    world.run("prlctl", "set", "ct1", "--name", "101")
    virsh("start", "101")
    assert virsh("domid", "101") == "101"
    virsh("destroy", "101")


def test_facts(world: World, virsh: Virsh) -> None:
    assert "Running hypervisor: vz 7" in virsh("version")
    assert virsh("hostname") == os.uname().nodename
    assert "x86_64" in virsh("nodeinfo")
    assert "<os_type>hvm</os_type>" in virsh("capabilities")
    facts = virsh("dominfo", "ct1")
    assert "OS Type: exe" in re.sub(" +", " ", facts)
    xml = virsh("dumpxml", "ct1")
    assert "<name>ct1</name>" in xml
    assert "not supported" in virsh("find-storage-pool-sources", "dir", code=1)


def test_read_only_changes_nothing(world: World, virsh: Virsh) -> None:
    reader = Virsh(world, readonly=True)
    assert re.search(r"ct1 +shut off", reader("list", "--all"))
    assert "read only" in reader("start", "ct1", code=1)
    assert world.run("prlctl", "status", "ct1").split()[-1] == "stopped"


def test_events_of_what_prlctl_does(world: World, virsh: Virsh) -> None:
    watcher = subprocess.Popen(
        ["virsh", "-q", "-c", virsh.uri, "event", "--all", "--loop", "--timeout", "600"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert watcher.stdout is not None
    try:
        while not select.select([watcher.stdout], [], [], 0.1)[0]:  # nobody is told when it listens
            world.run("prlctl", "set", "ct1", "--description", f"{time.monotonic()}")
        wanted = ["Started", "Suspended", "Resumed", "Stopped"]
        for verb in (["start"], ["pause"], ["resume"], ["stop", "--kill"]):
            world.run("prlctl", verb[0], "ct1", *verb[1:])
        while wanted:
            line = watcher.stdout.readline()
            assert line, f"no event {wanted[0]}"
            if f"'lifecycle' for domain 'ct1': {wanted[0]}" in line:
                wanted.pop(0)
    finally:
        watcher.terminate()
        watcher.wait(120)
        watcher.stdout.close()


@pytest.mark.parametrize(
    "rubbish",
    [b"\0\0\0\1", b"\xff" * 64, b"GET / HTTP/1.0\r\n\r\n" * 4, b"\0\0\0\x1c" + b"\x09" * 24],
)
def test_rubbish_ends_the_connection_only(world: World, virsh: Virsh, rubbish: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(120)
        sock.connect(os.fspath(Path(world.root) / "run/libvirt/virtvzd-sock"))
        sock.sendall(rubbish)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert "ct1" in virsh("list", "--all")
