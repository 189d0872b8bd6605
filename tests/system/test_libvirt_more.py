"""More of libvirt's clients: the console, python-libvirt's event loop, snapshots, interfaces."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from networld import wait_for
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh")

PYTHON = "/usr/bin/python3"  # the distribution's, which has its package python3-libvirt
MAC = "42:1c:00:12:34:56"
WATCHER = """
import sys, libvirt
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.openReadOnly(sys.argv[1])
def told(connection, domain, event, detail, opaque):
    print(domain.name(), event, detail, flush=True)
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None)
print("ready", flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""
# (words of prlctl, event and detail that python-libvirt is told)
HAPPENINGS = [
    ("start web", "2 0"),
    ("pause web", "3 0"),
    ("resume web", "4 0"),
    ("set web --description changed", "0 1"),
    ("stop web --kill", "5 1"),
    ("unregister web", "1 0"),
]
# The same of what has memory on disk, with the domain's name.
SAVED = [
    ("suspend web", "web 5 4"),
    ("resume web", "web 2 2"),
    ("snapshot web", ""),
    ("stop web --kill", "web 5 1"),
    ("snapshot-switch web -i {}", "web 2 3"),
    ("stop web --kill", "web 5 1"),
    ("clone web --name other", "other 0 0"),
    ("set other --name another", "another 0 2"),
    ("delete another", "another 1 0"),
]


@pytest.fixture
def virsh(world: World) -> Virsh:
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1")
    return Virsh(world)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read what is printed until WANTED has come."""
    seen, deadline = b"", time.monotonic() + 120
    while wanted not in seen:
        left = deadline - time.monotonic()
        assert left > 0, seen
        assert select.select([descriptor], [], [], left)[0], seen
        seen += os.read(descriptor, 4096)
    return seen


def test_typing_into_the_console(world: World, virsh: Virsh) -> None:
    virsh("start", "web")
    world.run("prlctl", "exec", "web", "echo '::respawn:-/bin/sh' >>/etc/inittab; kill -HUP 1")
    ours, theirs = os.openpty()
    client = subprocess.Popen(
        ["virsh", "-c", virsh.uri, "console", "web"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    os.close(theirs)
    try:
        read_until(ours, b"# ")
        os.write(ours, b"echo tty:$((6*7))\r")
        read_until(ours, b"tty:42")
        os.write(ours, b"\x1d")
        assert client.wait(120) == 0
    finally:
        client.kill()
        client.wait(120)
        os.close(ours)
    assert "running" in virsh("domstate", "web")


@contextmanager
def watcher(world: World) -> Iterator[int]:
    """Have python-libvirt print the events of lives; yields where."""
    if subprocess.run(
        [PYTHON, "-c", "import libvirt"], check=False, capture_output=True
    ).returncode:
        pytest.skip("python3-libvirt is not installed (script/bootstrap --dev)")
    uri = Virsh(world, readonly=True).uri
    process = subprocess.Popen([PYTHON, "-c", WATCHER, uri], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        read_until(process.stdout.fileno(), b"ready")
        yield process.stdout.fileno()
    finally:
        process.kill()
        process.wait(120)
        process.stdout.close()


def test_the_event_loop_of_python_libvirt(world: World, virsh: Virsh) -> None:
    home = world.run("prlctl", "list", "-H", "-o", "home", "web").strip()
    with watcher(world) as descriptor:
        for words, event in HAPPENINGS:
            world.run("prlctl", *words.split())
            read_until(descriptor, f"web {event}\n".encode())
        world.run("prlctl", "register", home)
        read_until(descriptor, b"web 0 0\n")


@pytest.mark.requires("criu")
def test_events_of_saved_memory(world: World, virsh: Virsh) -> None:
    virsh("start", "web")
    with watcher(world) as descriptor:
        for words, event in SAVED:
            name = virsh("snapshot-list", "web", "--name") if "{}" in words else ""
            world.run("prlctl", *words.format(name).split())
            if event:
                read_until(descriptor, f"{event}\n".encode())


def test_a_signal_for_a_process_inside(world: World, virsh: Virsh) -> None:
    virsh("start", "web")
    begin = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
    pid = world.run("prlctl", "exec", "web", begin).strip()
    virsh("send-process-signal", "web", pid, "term")
    wait_for(lambda: "no process" in virsh("send-process-signal", "web", pid, "nop", code=1))
    assert "running" in virsh("domstate", "web")


def test_snapshots(world: World, virsh: Virsh, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh("start", "web")
    world.run("prlctl", "exec", "web", "echo one >/root/file")
    virsh("snapshot-create-as", "web", "first", "before it all", "--disk-only")
    first = virsh("snapshot-current", "web", "--name")
    world.run("prlctl", "exec", "web", "echo two >/root/file")
    virsh("snapshot-create-as", "web", "second", "--disk-only")
    second = virsh("snapshot-current", "web", "--name")
    assert first in (names := virsh("snapshot-list", "web", "--name"))
    assert second in names
    assert virsh("snapshot-parent", "web", second) == first
    assert virsh("snapshot-list", "web", "--tree").split() == [first, "|", "+-", second]
    assert "before it all" in virsh("snapshot-dumpxml", "web", first)
    monkeypatch.setenv("EDITOR", "sed -i s/before/after/")
    virsh("snapshot-edit", "web", first)
    assert "after it all" in world.run("prlctl", "snapshot-list", "web", "-i", first)
    virsh("snapshot-revert", "web", first, "--running")
    assert world.run("prlctl", "exec", "web", "cat /root/file").strip() == "one"
    virsh("snapshot-delete", "web", second)
    assert virsh("snapshot-list", "web", "--name").split() == [first]
    assert "no domain snapshot" in virsh("snapshot-delete", "web", second, code=1).lower()


@pytest.mark.usefixtures("host_network")
def test_interfaces(world: World, virsh: Virsh, tmp_path: Path) -> None:
    virsh("start", "web")
    virsh("attach-interface", "web", "network", "Host-Only", "--mac", MAC, "--live", "--config")
    assert MAC in virsh("domiflist", "web")
    assert "Host-Only" in virsh("domiflist", "web")
    assert MAC in world.run("prlctl", "exec", "web", "cat /sys/class/net/eth0/address")
    card = tmp_path / "card.xml"
    card.write_text(
        f"<interface type='network'><mac address='{MAC}'/><source network='Host-Only'/>"
        "<link state='down'/></interface>"
    )
    virsh("update-device", "web", os.fspath(card), "--live")
    assert '<link state="down" />' in virsh("dumpxml", "web")
    card.write_text(card.read_text().replace("Host-Only", "Inner").replace("'down'", "'up'"))
    world.run("prlsrvctl", "net", "add", "Inner", "--type", "host-only")
    virsh("update-device", "web", os.fspath(card), "--live")
    assert "Inner" in virsh("domiflist", "web")
    assert '<link state="down" />' not in virsh("dumpxml", "web")
    virsh("detach-interface", "web", "network", "--mac", MAC, "--live")
    assert MAC not in virsh("domiflist", "web")
    world.run("prlctl", "delete", "web", "--force")
    for name in ("Host-Only", "Inner"):
        world.run("prlsrvctl", "net", "del", name)
