"""Routed and bridged interfaces with real packets: two containers, the node, the outside world."""

from __future__ import annotations

import json
import signal

from networld import (
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    NetWorld,
    busybox_root,
    busybox_tar,
    end,
    wait_for,
)
from networld import networld as world

__all__ = ["busybox_root", "busybox_tar", "world"]


def test_routed_containers_reach_each_other_and_the_world(world: NetWorld) -> None:
    before = world.rules(), world.links()
    world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    world.create("b", "--ipadd", "10.77.0.2/24", "--ipadd", "fd77::2/64")
    for target in ("10.77.0.2", "fd77::2", OUTSIDE4, OUTSIDE6, NODE4, NODE6):
        assert world.pings("a", target), target
    for target in ("10.77.0.1", "fd77::1", "10.77.0.2", "fd77::2"):
        assert world.reached(target), target
    # Another address, while it runs, and one less.
    world.prlctl("set", "a", "--ipadd", "10.77.0.9", "--ipadd", "10.99.0.77")
    assert world.reached("10.77.0.9")
    assert world.reached("10.99.0.77")  # an address of the uplink's network: proxy ARP
    world.prlctl("set", "a", "--ipdel", "10.77.0.9")
    assert not world.answering(("", "10.77.0.9"))
    assert world.reached("10.99.0.77")
    world.prlctl("restart", "a")
    assert world.reached("10.77.0.1")
    assert world.reached("10.99.0.77")
    world.prlctl("stop", "a", "--kill")
    world.prlctl("stop", "b", "--kill")
    assert (world.rules(), world.links()) == before
    assert world.at(world.node, "ip", "neigh", "show", "proxy") == ""


def test_addresses_that_are_in_use_are_refused(world: NetWorld) -> None:
    world.create("a", "--ipadd", "10.77.0.1", start=False)
    world.create("b", start=False)
    assert "is in use by the container" in world.vzctl(
        "set", "b", "--ipadd", "10.77.0.1", "--save", code=78
    )
    assert "address of the node itself" in world.vzctl(
        "set", "b", "--ipadd", NODE4, "--save", code=78
    )
    assert "is in use on the network by" in world.vzctl(
        "set", "b", "--ipadd", OUTSIDE4, "--save", code=78
    )
    for bad in ("127.0.0.1", "224.0.0.1", "10.1.2", "10.1.2.3/33", "fe80::1"):
        world.vzctl("set", "b", "--ipadd", bad, "--save", code=21)
    [row] = json.loads(world.prlctl("list", "-a", "-j", "b"))
    assert row["ip_configured"] in ("", "-")
    world.prlctl("delete", "a")
    world.vzctl("set", "b", "--ipadd", "10.77.0.1", "--save")
    # From the node's range.
    world.vzctl("set", "b", "--ipadd", "auto", "--save", code=104)
    with (world.root / "etc/vz/vz.conf").open("a") as conf:
        conf.write('VE_ADDRESS_RANGE="10.77.0.1-10.77.0.3"\n')
    world.prlctl("set", "b", "--ipadd", "auto")
    assert "10.77.0.1 10.77.0.2" in world.prlctl("list", "-i", "b")


def test_addresses_that_somebody_on_the_wire_has_are_refused(world: NetWorld) -> None:
    """IPv4 and IPv6, on the network of a routed address and on a bridge; at `set` and at start."""
    before = world.rules(), world.links()
    bridge(world)
    world.at(world.node, "ip", "link", "add", "p0", "master", "br0", "type", "veth", "peer",
             "name", "lan0", "address", "02:00:00:00:00:99", "netns", world.outside)  # fmt: skip
    world.at(world.node, "ip", "link", "set", "p0", "up")
    for address in ("10.88.0.9/24", "fd88::9/64"):
        world.at(world.outside, "ip", "addr", "add", address, "dev", "lan0", "nodad")
    world.at(world.outside, "ip", "link", "set", "lan0", "up")
    world.create("a", *BRIDGED, start=False)
    taken = "is in use on the network by 02:00:00:00:00:99"
    for address in ("10.88.0.9/24", "fd88::9/64"):
        told = world.vzctl("set", "a", "--ifname", "eth0", "--ipadd", address, "--save", code=78)
        assert taken in told
    told = world.vzctl("set", "a", "--ipadd", OUTSIDE6, "--save", code=78)
    assert "is in use on the network by" in told
    world.vzctl("set", "a", "--ifname", "eth0", "--ipadd", "fd88::8/64", "--save")
    world.vzctl("start", "a")
    told = world.vzctl("set", "a", "--ifname", "eth0", "--ipadd", "fd88::9/64", "--save", code=78)
    assert taken in told
    assert "fd88::9" not in world.inside("a", "ip", "addr")
    world.prlctl("stop", "a", "--kill")
    # Somebody takes it while the container is down.
    world.at(world.outside, "ip", "addr", "add", "fd88::8/64", "dev", "lan0", "nodad")
    assert taken in world.vzctl("start", "a", code=78)
    assert "stopped" in world.prlctl("status", "a")
    with (world.root / "etc/vz/vz.conf").open("a") as conf:
        conf.write('SKIP_ARPDETECT="yes"\n')
    world.vzctl("start", "a")
    world.prlctl("stop", "a", "--kill")
    for name in ("p0", "br0"):
        world.at(world.node, "ip", "link", "del", name)
    assert (world.rules(), world.links()) == before


def test_everything_survives_the_daemon_and_a_reboot(world: NetWorld) -> None:
    uuid = world.create("a", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1")
    end(world.vzd(), signal.SIGKILL)
    assert world.reached("10.77.0.1")
    world.prlctl("list")  # a new vzd
    assert world.reached("fd77::1")
    world.prlctl("set", "a", "--ipadd", "10.77.0.5")
    assert world.reached("10.77.0.5")
    world.inside("a", "reboot", code=None)
    assert world.reached("10.77.0.5")
    end(world.vzd(), signal.SIGKILL)
    for line in world.at(world.node, "ip", "-j", "link").splitlines():
        assert uuid in line
    world.prlctl("stop", "a", "--kill")
    assert world.links() == ["up0"]
    assert world.rules() == ""


BRIDGED = ("--device-add", "net", "--network", "br0")


def bridge(world: NetWorld) -> None:
    world.at(world.node, "ip", "link", "add", "br0", "address", "02:00:00:00:00:01",
             "type", "bridge")  # fmt: skip
    world.at(world.node, "ip", "addr", "add", "10.88.0.1/24", "dev", "br0")
    world.at(world.node, "ip", "link", "set", "br0", "up")


def test_bridged_containers(world: NetWorld) -> None:
    bridge(world)
    world.create("a", *BRIDGED, "--ipadd", "10.88.0.2/24", "--ipadd", "fd88::2/64",
                 "--gw", "10.88.0.1")  # fmt: skip
    # What is started can use its address: nobody waits for duplicate detection.
    assert "tentative" not in world.inside("a", "ip", "-6", "addr", "show", "scope", "global")
    world.create("b")
    # Hot add, by the shorthand, with a name and a MAC of its own.
    world.vzctl("set", "b", "--netif_add", "lan0,c4:37:72:00:00:0b", "--network", "br0",
                "--ipadd", "10.88.0.3/24", "--ipadd", "fd88::3/64", "--save")  # fmt: skip
    assert "veth7200000b" in world.links()
    assert "c4:37:72:00:00:0b" in world.inside("b", "ip", "link", "show", "lan0")
    for target in ("10.88.0.1", "10.88.0.3"):
        assert world.pings("a", target), target
    assert not world.answering(("a", OUTSIDE4))  # no way back from there
    assert world.pings("b", "10.88.0.2")
    assert world.pings("b", "fd88::2")
    told = world.prlctl("statistics", "b", "--filter", "net.nic*").split()
    counted = dict(zip(told[::2], map(int, told[1::2]), strict=True))
    assert counted["net.nic0.pkts_out:"] > 0
    assert counted["net.nic0.bytes_in:"] > 100
    # The cable, the address, the card.
    world.prlctl("set", "b", "--device-disconnect", "net0")
    assert not world.answering(("a", "10.88.0.3"))
    world.prlctl("set", "b", "--device-connect", "net0")
    assert world.pings("a", "10.88.0.3")
    world.prlctl("set", "b", "--device-set", "net0", "--ipset", "10.88.0.4/24")
    assert world.pings("a", "10.88.0.4")
    assert not world.answering(("a", "10.88.0.3"))
    world.prlctl("set", "b", "--device-del", "net0")
    assert "lan0" not in world.inside("b", "ip", "link")
    world.prlctl("set", "b", "--device-del", "net0", code=255)
    world.prlctl("set", "b", *BRIDGED, "--mac", "c4:37:72:00:00:0b", "--ifname", "eth7",
                 "--ipadd", "10.88.0.5/24")  # fmt: skip
    assert world.pings("a", "10.88.0.5")
    world.prlctl("restart", "b")
    assert world.pings("a", "10.88.0.5")
    world.prlctl("set", "a", *BRIDGED, "--mac", "c4:37:72:00:00:0b", code=1)
    world.prlctl("set", "a", "--device-add", "net", "--network", "nowhere", code=255)
    assert "02:00:00:00:00:01" in world.at(world.node, "ip", "link", "show", "br0")


def test_a_container_that_lies_reaches_nobody(world: NetWorld) -> None:
    """By routed and by bridged interfaces, in IPv4, ARP, IPv6, NDP and with its MAC."""
    bridge(world)
    world.at(world.node, "ip", "addr", "add", "fd88::1/64", "dev", "br0", "nodad")
    world.create("liar", "--ipadd", "10.77.0.1", "--ipadd", "fd77::1", *BRIDGED,
                 "--ipadd", "10.88.0.2/24", "--ipadd", "fd88::2/64")  # fmt: skip
    world.create("victim", "--ipadd", "10.77.0.2", *BRIDGED,
                 "--ipadd", "10.88.0.3/24", "--ipadd", "fd88::3/64")  # fmt: skip
    assert world.pings("liar", "fd88::3")
    assert world.pings("liar", "10.77.0.2")
    for address, device in (("10.77.0.66", "venet0"), ("10.88.0.66", "eth0"), ("fd88::66", "eth0")):
        length = "128" if ":" in address else "24" if device == "eth0" else "32"
        world.inside("liar", "ip", "addr", "add", f"{address}/{length}", "dev", device)
    wait_for(lambda: "tentative" not in world.inside("liar", "ip", "addr"))
    assert not world.answering(
        # A foreign source.
        ("liar", "10.77.0.2", "-I", "10.77.0.66"),
        ("liar", OUTSIDE4, "-I", "10.77.0.66"),
        ("liar", "10.88.0.3", "-I", "10.88.0.66"),
        ("liar", "fd88::3", "-I", "fd88::66"),
        # Nobody finds it there: its ARP and NDP answers go nowhere.
        ("victim", "10.88.0.66"),
        ("victim", "fd88::66"),
    )
    # The victim's own address, by a gratuitous ARP and as a source.
    world.inside("liar", "ip", "addr", "add", "10.88.0.3/24", "dev", "eth0")
    world.inside("liar", "arping", "-A", "-c", "2", "-I", "eth0", "10.88.0.3", code=None)
    world.at(world.node, "ip", "neigh", "flush", "all")
    assert "10.88.0.3" in world.at(world.node, "busybox", "arping", "-c", "1", "-I", "br0",
                                   "10.88.0.3", code=None)  # fmt: skip
    found = world.at(world.node, "busybox", "arping", "-c", "2", "-I", "br0", "10.88.0.3")
    mac = json.loads(world.prlctl("list", "-a", "-j", "-o", "mac", "victim"))[0]["mac"]
    assert mac.strip().lower() in found.lower().replace(":", "")
    # Another hardware address.
    assert world.pings("liar", "10.88.0.1")
    world.inside("liar", "ip", "link", "set", "eth0", "down")
    world.inside("liar", "ip", "link", "set", "eth0", "address", "c4:37:72:99:99:99")
    world.inside("liar", "ip", "link", "set", "eth0", "up")
    assert not world.answering(("liar", "10.88.0.1"))
    # Filters that were switched off are off.
    world.prlctl("set", "liar", "--device-set", "net0", "--ipfilter", "off", "--macfilter", "off")
    assert world.pings("liar", "10.88.0.1", "-I", "10.88.0.66")


def test_rules_and_links_of_others_live_on(world: NetWorld) -> None:
    world.at(world.node, "nft", "add", "table", "inet", "theirs")
    world.at(world.node, "nft", "add", "chain", "inet", "theirs", "c",
             "{ type filter hook forward priority 0; }")  # fmt: skip
    world.at(world.node, "ip", "link", "add", "veth01020304", "type", "veth", "peer", "other0")
    before = world.rules(), world.links()
    world.create("a", "--ipadd", "10.77.0.1")
    world.prlctl("set", "a", "--netif_add", "eth5,c4:37:01:02:03:04", code=255)
    world.prlctl("set", "a", "--ipadd", "10.77.0.2", "--ipdel", "10.77.0.1")
    world.prlctl("delete", "a", "--force")
    assert (world.rules(), world.links()) == before


def test_interfaces_of_the_node_are_moved_inside(world: NetWorld) -> None:
    before = world.rules(), world.links()
    world.at(
        world.node, "ip", "link", "add", "nic0", "type", "veth", "peer", "nic1", "netns",
        world.outside,
    )  # fmt: skip
    world.at(world.outside, "ip", "addr", "add", "10.55.0.1/24", "dev", "nic1")
    world.at(world.outside, "ip", "link", "set", "nic1", "up")
    world.create("a")
    assert "There is no network interface nic7" in world.vzctl(
        "set", "a", "--netdev_add", "nic7", "--save", code=104
    )
    world.vzctl("set", "a", "--netdev_add", "nic0", "--save")
    assert "nic0" not in world.links()
    world.inside("a", "ip", "addr", "add", "10.55.0.2/24", "dev", "nic0")
    world.inside("a", "ip", "link", "set", "nic0", "up")
    assert world.pings("a", "10.55.0.1")
    assert json.loads(world.prlctl("list", "-a", "-o", "netdev", "-j"))[0]["netdev"] == "nic0"
    # It comes back with the end of the container, and goes in again with its start.
    world.prlctl("stop", "a", "--kill")
    assert "nic0" in world.links()
    world.prlctl("start", "a")
    assert "nic0" not in world.links()
    end(world.vzd(), signal.SIGKILL)
    world.prlctl("stop", "a", "--kill")
    assert "nic0" in world.links()
    world.prlctl("start", "a")
    world.prlctl("set", "a", "--netdev_del", "nic0")
    assert "nic0" in world.links()
    world.at(world.node, "ip", "link", "del", "nic0")
    world.prlctl("stop", "a", "--kill")
    assert (world.rules(), world.links()) == before


def test_external_addresses_and_new_hardware_addresses(world: NetWorld) -> None:
    world.create("a", "--ipadd", "10.77.0.1")
    world.create("b", start=False)
    world.vzctl("set", "a", "--ext_ipadd", "10.77.9.9", "--save")
    assert "in use by the container" in world.vzctl(
        "set", "b", "--ipadd", "10.77.9.9", "--save", code=78
    )
    # Led to it, but not on it: what is done with them is its own matter.
    assert "10.77.9.9" in world.at(world.node, "ip", "route")
    assert "10.77.9.9" not in world.inside("a", "ip", "addr")
    world.inside("a", "ip", "addr", "add", "10.77.9.9/32", "dev", "lo")
    assert world.reached("10.77.9.9")
    world.vzctl("set", "a", "--ext_ipdel", "10.77.9.9", "--save")
    assert not world.answering(("", "10.77.9.9"))
    bridge(world)
    world.prlctl("set", "a", *BRIDGED, "--ipadd", "10.88.0.2/24")
    old = world.inside("a", "cat", "/sys/class/net/eth0/address")
    world.vzctl("set", "a", "--netif_mac_renew", "--save")
    new = world.inside("a", "cat", "/sys/class/net/eth0/address")
    assert new.startswith("c4:37:72:")
    assert new != old
    assert world.pings("a", "10.88.0.1")
