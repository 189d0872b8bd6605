"""Beside firewalls of others: our containers work, or it is told why not; nobody's rules change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from firewalls import DOCKER, Firewalld, docker, firewalld, start_vzd
from networld import OUTSIDE4, OUTSIDE6, NetWorld, busybox_root, busybox_tar, networld, wait_for

__all__ = ["busybox_root", "busybox_tar", "networld"]

pytestmark = pytest.mark.requires("program:dnsmasq", "program:nft")


@pytest.fixture
def world(networld: NetWorld) -> Iterator[NetWorld]:
    yield networld
    networld.prlctl("list")  # so that the networks' servers can be ended
    for name in ("a", "b"):
        networld.prlctl("delete", name, "--force", code=None)
    networld.cli("prlsrvctl", "net", "del", "nat", code=None)


@pytest.fixture
def theirs(networld: NetWorld) -> Iterator[Firewalld]:
    with firewalld(networld) as made:
        yield made


def blocked(world: NetWorld, network: str) -> str:
    """What `net info` says about firewalls of others."""
    told = json.loads(world.cli("prlsrvctl", "net", "info", network, "-j"))
    return str(told.get("Blocked", ""))


@pytest.mark.long
@pytest.mark.requires("program:firewalld", "program:firewall-cmd", "program:dbus-daemon")
def test_firewalld(world: NetWorld, theirs: Firewalld) -> None:
    theirs.start()
    start_vzd(world, theirs.env)
    world.cli("prlsrvctl", "net", "add", "nat", "-t", "shared", "--ip", "10.66.0.1/24")
    assert "has no zone pyvz" in (world.root / "var/log/pyvz/vzd.log").read_text()
    assert "--zone=pyvz --change-interface=virbr1" in blocked(world, "nat")
    world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    assert not world.answering(("a", OUTSIDE4), ("", "10.77.0.1"))
    world.prlctl("delete", "a", "--force")
    world.cli("prlsrvctl", "net", "del", "nat")
    # The zone is there: nothing more is to be done.
    theirs.install_zone()
    theirs.cmd("--reload")
    before = theirs.rules()
    world.cli("prlsrvctl", "net", "add", "nat", "-t", "shared", "--ip", "10.66.0.1/24")
    assert blocked(world, "nat") == ""
    world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    world.plugged("b", "nat")
    _all_reached(world)
    _reloaded(world, theirs)
    for name in ("a", "b"):
        world.prlctl("delete", name, "--force")
    world.cli("prlsrvctl", "net", "del", "nat")
    theirs.cmd("--zone=public", "--remove-service=http")
    assert theirs.rules() == before


def _all_reached(world: NetWorld) -> None:
    """Routed, both ways and families; by NAT; among them."""
    for target in (OUTSIDE4, OUTSIDE6):
        assert world.pings("a", target)
    assert world.reached("10.77.0.1")
    assert world.reached("fd77::1")
    assert world.pings("b", OUTSIDE4)
    assert world.pings("b", "10.66.0.1")
    assert world.pings("b", "10.77.0.1")


def _reloaded(world: NetWorld, theirs: Firewalld) -> None:
    """What an administrator does to firewalld costs us nothing, and what we do costs nobody."""
    theirs.cmd("--zone=public", "--add-service=http")
    theirs.cmd("--reload")  # which forgets what is not permanent: vzd says it again
    _all_reached(world)
    theirs.cmd("--zone=public", "--add-service=http")
    world.prlctl("restart", "a")
    assert "http" in theirs.cmd("--zone=public", "--list-services")
    _all_reached(world)
    theirs.stop()
    assert "firewalld" not in world.rules()
    theirs.start()
    wait_for(lambda: "virbr1" in "".join(theirs.rules()))
    _all_reached(world)
    theirs.cmd("--zone=public", "--add-service=http")
    # An administrator's word counts more than ours.
    theirs.cmd("--zone=public", "--change-interface=virbr1")
    world.cli("prlsrvctl", "net", "set", "nat", "-d", "changed")
    assert theirs.cmd("--get-zone-of-interface=virbr1") == "public\n"
    theirs.cmd("--zone=pyvz", "--change-interface=virbr1")


@pytest.mark.requires("program:iptables")
def test_rules_of_docker(world: NetWorld) -> None:
    world.at(world.node, "nft", "-f", "-", data=DOCKER)
    before = world.at(world.node, "nft", "-s", "list", "table", "ip", "filter")
    world.cli("prlsrvctl", "net", "add", "nat", "-t", "shared", "--ip", "10.66.0.1/24")
    world.create("a", "--ipadd", "10.77.0.1")
    world.create("b", "--device-add", "net", "--network", "nat", "--ipadd", "10.66.0.9/24",
                 "--gw", "10.66.0.1")  # fmt: skip
    assert not world.answering(("a", OUTSIDE4), ("b", OUTSIDE4))
    told = blocked(world, "nat")
    assert told.startswith("Docker (the chain FORWARD of the table ip filter)")
    log = world.root / "var/log/pyvz/vzd.log"
    wait_for(lambda: "venet*" in log.read_text())
    assert world.at(world.node, "nft", "-s", "list", "table", "ip", "filter") == before
    # Where frames in a bridge are filtered too, it is so for a bridged network.
    world.at(world.node, "ip", "link", "add", "br0", "type", "bridge")
    world.cli("prlsrvctl", "net", "add", "lan", "--ifname", "br0")
    world.at(world.node, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    assert blocked(world, "lan") == ""
    world.at(world.node, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    assert "none speaks of br0 (the network lan)" in blocked(world, "lan")
    world.cli("prlsrvctl", "net", "del", "lan")
    # What it says helps.
    advice = [told, *(line for line in log.read_text().splitlines() if "venet*" in line)]
    for command in {each for text in advice for each in re.findall(r"iptables [^;]*", text)}:
        world.at(world.node, *command.split())
    assert world.pings("a", OUTSIDE4)
    assert world.pings("b", OUTSIDE4)
    assert blocked(world, "nat") == ""


@pytest.mark.long
@pytest.mark.requires("program:dockerd", "program:docker", "program:iptables")
def test_docker(world: NetWorld) -> None:
    table = ("nft", "-s", "list", "table", "ip", "filter")
    with docker(world):
        before = world.at(world.node, *table)
        assert "policy drop" in before
        world.cli("prlsrvctl", "net", "add", "nat", "-t", "shared", "--ip", "10.66.0.1/24")
        world.plugged("a", "nat")
        assert not world.answering(("a", OUTSIDE4))
        commands = re.findall(r"iptables [^;]*", blocked(world, "nat"))
        assert world.at(world.node, *table) == before
        for command in commands:
            world.at(world.node, *command.split())
        assert world.pings("a", OUTSIDE4)
    with docker(world):  # started anew, it leaves that chain alone
        before = world.at(world.node, *table)
        assert world.pings("a", OUTSIDE4)
        assert blocked(world, "nat") == ""
        world.prlctl("delete", "a", "--force")
        world.cli("prlsrvctl", "net", "del", "nat")
        assert world.at(world.node, *table) == before
