"""Events in python-libvirt's loop: of devices, texts, jobs, agents; and after vzd was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from images import busybox_root, busybox_tar
from libvirtpython import LibvirtPython, python, socket_uri
from machineguest import Guest, guest
from realnode import World, world
from tinyguest import tiny_iso

__all__ = ["busybox_root", "busybox_tar", "guest", "python", "tiny_iso", "world"]
pytestmark = pytest.mark.requires("root", "program:virsh")

LIFECYCLE, TRAY, BALLOON, REMOVED, AGENT, ADDED, JOB_ENDED, METADATA = 0, 10, 13, 15, 18, 19, 21, 23
WAIT = (
    "[connection.domainEventRegisterAny(None, number, lambda c, d, *rest, n=number:"
    " tell(n, d.name(), *rest), None) for number in %s]"
)
SET_METADATA = "dom('web').setMetadata(2, '<a xmlns=\"urn:x\"/>', 'x', 'urn:x', 2)"


@pytest.fixture
def web(world: World) -> World:
    world.run("prlctl", "create", "web", "--vmtype", "ct", "--ostemplate", "busybox-1")
    return world


@pytest.mark.usefixtures("host_network")
def test_devices_texts_and_jobs(web: World, python: LibvirtPython) -> None:
    python(WAIT % [REMOVED, ADDED, JOB_ENDED, METADATA])
    web.run("prlctl", "set", "web", "--device-add", "net", "--network", "Host-Only")
    python.hears(ADDED, "web", "eth0", None)
    web.run("prlctl", "set", "web", "--device-del", "net0")
    python.hears(REMOVED, "web", "eth0", None)
    web.run("prlctl", "set", "web", "--description", "a text")
    python.hears(METADATA, "web", 0, None, None)
    python(SET_METADATA)
    python.hears(METADATA, "web", 2, "urn:x", None)
    web.run("prlctl", "snapshot", "web")
    python.until(f"[True for e in heard if e[0] == {JOB_ENDED} and e[2]['operation'] == 6]")
    found = python("dom('web').jobStats(1)")
    assert found["type"] == 3
    assert found["success"] is True
    web.run("prlsrvctl", "net", "del", "Host-Only")


def test_after_vzd_was_killed(web: World, python: LibvirtPython) -> None:
    """The client hears that the connection has ended; a new one sees, and hears, what is so."""
    python("connection.registerCloseCallback(lambda c, reason, opaque: tell('closed'), None)")
    web.run("prlctl", "start", "web")
    assert python("dom('web').state()[0]") == 1
    web.kill_vzd()
    python.hears("closed")
    assert python("connection.isAlive()") == 0
    web.run("prlctl", "list", "-a")  # vzd comes back
    python.until(f"libvirt.open({socket_uri(web)!r}).isAlive()")
    python(f"connection = libvirt.open({socket_uri(web)!r})")
    python("dom = connection.lookupByName")
    python(WAIT % [LIFECYCLE])
    assert python("dom('web').state()[0]") == 1
    web.run("prlctl", "stop", "web", "--kill")
    python.hears(LIFECYCLE, "web", 5, 1, None)
    assert python("dom('web').state()[0]") == 5


@pytest.mark.long
@pytest.mark.requires("program:qemu-system-x86_64", "program:qemu-img")
def test_a_machine(guest: Guest, python: LibvirtPython, tiny_iso: Path) -> None:
    python(WAIT % [TRAY, BALLOON, AGENT])
    guest.start()
    python.hears(AGENT, "vm1", 1, 2, None)
    assert 'name="org.qemu.guest_agent.0" state="connected"' in python("dom('vm1').XMLDesc(0)")
    guest.prlctl("set", "vm1", "--device-disconnect", "cdrom0")
    python.hears(TRAY, "vm1", "cdrom0", 0, None)
    guest.inside("(sleep 1; kill $(cat /run/ga.pid)) >/dev/null 2>&1 &")
    python.hears(AGENT, "vm1", 2, 2, None)
    guest.prlctl("stop", "vm1", "--kill")
