"""Virtual networks by virsh: defined, up and down, changed, leases, events."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_libvirt import Virsh

from images import busybox_root, busybox_tar
from realnode import World, world

__all__ = ["busybox_root", "busybox_tar", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh", "program:dnsmasq")

XML = """
<network>
  <name>shop</name>
  <uuid>0b2a9c1e-6d5e-4c0f-8a37-1f1d1f6c2a11</uuid>
  <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward>
  <bridge stp='on' delay='0'/>
  <domain name='shop'/>
  <ip address='10.213.7.1' netmask='255.255.255.0'>
    <dhcp><range start='10.213.7.100' end='10.213.7.199'/></dhcp>
  </ip>
</network>
"""


@pytest.fixture
def virsh(world: World) -> Iterator[Virsh]:
    world.run("prlctl", "list", "-a")  # the daemon
    yield Virsh(world)
    # What a test that has failed left behind.
    for words in (["prlctl", "delete", "ct1", "--force"], ["prlsrvctl", "net", "del", "shop"]):
        subprocess.run(world.argv(*words), env=world.env, check=False, capture_output=True)


LISTENER = """
import sys, libvirt
libvirt.virEventRegisterDefaultImpl()
client = libvirt.open(sys.argv[1])
def tell(_client, about, event, _detail, kind):
    print(kind, about.name(), event, flush=True)
client.networkEventRegisterAny(None, libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE, tell, "net")
client.storagePoolEventRegisterAny(None, libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE, tell, "pool")
print("ready", flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""
DEFINED, UNDEFINED, STARTED, STOPPED = range(4)


@contextmanager
def listening(virsh: Virsh) -> Iterator[subprocess.Popen[str]]:
    """python-libvirt waits for events; what it has heard can be read."""
    argv = ["/usr/bin/python3", "-c", LISTENER, virsh.uri]
    watcher = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    try:
        assert watcher.stdout.readline() == "ready\n"
        yield watcher
    finally:
        watcher.terminate()
        watcher.wait(120)
        watcher.stdout.close()


def heard(watcher: subprocess.Popen[str], name: str, *events: int) -> None:
    """Read until all has happened, in this order."""
    assert watcher.stdout is not None
    for event in events:
        while (line := watcher.stdout.readline()) != f"{name} {event}\n":
            assert line, f"no event {event} of {name}"


@pytest.mark.usefixtures("host_network")
def test_a_network(world: World, virsh: Virsh, tmp_path: Path) -> None:
    file = tmp_path / "net.xml"
    file.write_text(XML)
    with listening(virsh) as watcher:
        virsh("net-define", os.fspath(file))
        assert re.search(r"shop +inactive +no +yes", virsh("net-list", "--all"))
        assert "shop" not in virsh("net-list", "--autostart")
        virsh("net-start", "shop")
        assert "already active" in virsh("net-start", "shop", code=1)
        heard(watcher, "net shop", DEFINED, STARTED)
        virsh("net-autostart", "shop")
        assert re.search(r"shop +active +yes +yes", virsh("net-list"))
        shown = virsh("net-dumpxml", "shop")
        for text in ('<forward mode="nat"', '<range start="10.213.7.100" end="10.213.7.199"'):
            assert text in shown
        assert "shared" in world.run("prlsrvctl", "net", "info", "shop")
        # What net-dumpxml says can be given back, and changes nothing.
        file.write_text(shown)
        virsh("net-define", os.fspath(file))
        assert virsh("net-dumpxml", "shop") == shown
        scope = "<range start='10.213.7.10' end='10.213.7.20'/>"
        virsh("net-update", "shop", "modify", "ip-dhcp-range", scope, "--live", "--config")
        assert 'start="10.213.7.10" end="10.213.7.20"' in virsh("net-dumpxml", "shop")
        virsh("net-destroy", "shop")
        assert re.search(r"shop +inactive +yes", virsh("net-list", "--all"))
        assert "not active" in virsh("net-destroy", "shop", code=1)
        virsh("net-undefine", "shop")
        assert "shop" not in virsh("net-list", "--all")
        heard(watcher, "net shop", STOPPED, UNDEFINED)


@pytest.mark.usefixtures("host_network")
def test_a_lease(world: World, virsh: Virsh, tmp_path: Path) -> None:
    file = tmp_path / "net.xml"
    file.write_text(XML)
    virsh("net-create", os.fspath(file))
    world.run("prlctl", "create", "ct1", "--vmtype", "ct", "--ostemplate", "busybox-1")
    world.run("prlctl", "set", "ct1", "--device-add", "net", "--network", "shop", "--dhcp", "yes")
    virsh("start", "ct1")
    assert "in use" in virsh("net-destroy", "shop", code=1)
    world.run(
        "prlctl", "exec", "ct1", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "20", "-s", "/bin/true"
    )
    found = re.search(r"(\S+:\S+) +ipv4 +(10\.213\.7\.1\d\d)/24", virsh("net-dhcp-leases", "shop"))
    assert found
    assert found[2] in virsh("net-dhcp-leases", "shop", "--mac", found[1])
    assert found[2] in virsh("domifaddr", "ct1")
    virsh("destroy", "ct1")
    virsh("undefine", "ct1")
    virsh("net-destroy", "shop")
    virsh("net-undefine", "shop")


def test_events_of_pools(world: World, virsh: Virsh, tmp_path: Path) -> None:
    place, homes = tmp_path / "pool", world.root / "homes"
    place.mkdir()
    homes.mkdir()
    with listening(virsh) as watcher:
        world.run("prlsrvctl", "pool", "add", "more", "--driver", "simfs", "--path", "/homes")
        heard(watcher, "pool more", DEFINED)
        virsh("pool-create-as", "images", "dir", "--target", os.fspath(place), "--build")
        heard(watcher, "pool images", DEFINED, STARTED)
        virsh("pool-destroy", "images")
        virsh("pool-undefine", "images")
        heard(watcher, "pool images", STOPPED, UNDEFINED)
    virsh("pool-undefine", "more")
    assert "more" not in world.run("prlsrvctl", "pool", "list")
