"""Real guests: what is set from outside is still there when their own init has configured them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from images import debian_of, debian_tar
from networld import NetWorld, busybox_root, busybox_tar, end, wait_for
from networld import networld as world

# Real boots and rates take their time: only with script/test --all.
pytestmark = pytest.mark.long

__all__ = ["busybox_root", "busybox_tar", "debian_tar", "world"]

DEBIAN = "debian-12-x86_64"
BOOT = 180  # seconds that a boot may take on a busy machine
ADDRESSES = ("10.77.0.1/32", "fd77::1/128", "10.88.0.2/24", "fd88::2/64")


def addresses(world: NetWorld) -> set[str]:
    links = json.loads(world.inside("a", "ip", "-j", "addr"))
    return {
        f"{each['local']}/{each['prefixlen']}"
        for link in links
        for each in link["addr_info"]
        if each["scope"] == "global"
    }


def booted(world: NetWorld) -> bool:
    state = world.inside("a", "systemctl", "is-system-running", "--wait", code=None)
    return state.strip() in {"running", "degraded"}


def check(world: NetWorld) -> None:
    wait_for(lambda: booted(world), BOOT)
    wait_for(lambda: addresses(world) == set(ADDRESSES), BOOT)
    [route] = json.loads(world.inside("a", "ip", "-j", "route", "show", "default"))
    assert (route["dev"], route["scope"]) == ("venet0", "link")
    [route] = json.loads(world.inside("a", "ip", "-j", "-6", "route", "show", "default"))
    assert route["dev"] == "venet0"
    for address in ("10.77.0.1", "fd77::1"):
        assert world.reached(address)
    failed = world.inside("a", "systemctl", "list-units", "--failed", "--plain", "--no-legend")
    # Debian 11 has a socket for the node's audit, which no container can have.
    units = {line.split()[0] for line in failed.splitlines() if line.strip()}
    assert units <= {"systemd-journald-audit.socket"}
    assert "web.example.org" in world.inside("a", "hostname")
    assert "nameserver 9.9.9.9" in world.inside("a", "cat", "/etc/resolv.conf")


def boot(world: NetWorld, archive: Path) -> None:
    shutil.copy(archive, world.root / f"vz/template/cache/{DEBIAN}.plain.tar.zst")
    world.at(world.node, "ip", "link", "add", "br0", "type", "bridge")
    world.at(world.node, "ip", "link", "set", "br0", "up")
    world.prlctl("create", "a", "--vmtype", "ct", "--ostemplate", DEBIAN)
    # fmt: off
    world.prlctl("set", "a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1",
                 "--hostname", "web.example.org", "--nameserver", "9.9.9.9")
    world.prlctl("set", "a", "--device-add", "net", "--network", "br0", "--ipadd", "10.88.0.2/24",
                 "--ipadd", "fd88::2/64")
    # fmt: on


def again(world: NetWorld) -> None:
    """A boot, an address more, a reboot from inside, one less, an end of vzd, a restart."""
    world.prlctl("start", "a")
    check(world)
    world.prlctl("set", "a", "--ipadd", "10.77.0.7")
    before = world.inside("a", "cat", "/proc/sys/kernel/random/boot_id")
    started = world.inside("a", "stat", "-c", "%Y", "/proc/1")
    world.inside("a", "systemctl", "--no-block", "reboot", code=None)
    assert before
    wait_for(lambda: _started(world) not in {"", started.strip()}, BOOT)
    wait_for(lambda: booted(world), BOOT)
    wait_for(lambda: addresses(world) == {*ADDRESSES, "10.77.0.7/32"}, BOOT)
    world.prlctl("set", "a", "--ipdel", "10.77.0.7")
    check(world)
    end(world.vzd(), signal.SIGKILL)
    world.prlctl("restart", "a")
    check(world)


def _started(world: NetWorld) -> str:
    out = world.inside("a", "stat", "-c", "%Y", "/proc/1", code=None).strip()
    return out if out.isdigit() else ""


def test_debian_12_with_ifupdown(world: NetWorld, debian_tar: Path) -> None:
    boot(world, debian_tar)
    again(world)
    home = next((world.root / "vz/root").iterdir())
    text = (home / "etc/network/interfaces.d/pyvz").read_text()
    assert "ip -4 address replace 10.77.0.1/32 dev $IFACE" in text
    # A packet filter of its own, unless NETFILTER says no.
    tried = ("perl", "-e", "'socket(S, 16, 3, 12) ? print 1 : print 0'")
    assert world.inside("a", *tried) == "1"
    world.prlctl("set", "a", "--netfilter", "disabled")
    world.prlctl("restart", "a")
    assert world.inside("a", *tried) == "0"
    assert addresses(world) == set(ADDRESSES)


def test_debian_12_with_networkd(world: NetWorld, debian_tar: Path) -> None:
    boot(world, debian_tar)
    world.prlctl("mount", "a")
    home = next((world.root / "vz/root").iterdir())
    wants = home / "etc/systemd/system/multi-user.target.wants"
    (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    world.prlctl("umount", "a")
    again(world)
    assert (home / "etc/systemd/network/05-pyvz-venet0.network").exists()
    assert not (home / "etc/network/interfaces.d/pyvz").exists()


GUESTS = {
    "debian-11": (11, (), "etc/network/interfaces.d/pyvz"),
    "debian-13": (13, (), "etc/network/interfaces.d/pyvz"),
    "netplan": (12, ("netplan.io",), "etc/netplan/60-pyvz.yaml"),
    "networkmanager": (
        12,
        ("network-manager",),
        "etc/NetworkManager/system-connections/pyvz-venet0.nmconnection",
    ),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("guest", GUESTS)
def test_other_guests(world: NetWorld, guest: str) -> None:
    release, more, file = GUESTS[guest]
    try:
        archive = debian_of(release, *more)
    except RuntimeError as error:
        pytest.skip(f"it cannot be had: {error}")
    boot(world, archive)
    again(world)
    home = next((world.root / "vz/root").iterdir())
    assert (home / file).exists()
