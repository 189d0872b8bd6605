"""Virtual networks with real packets: leases, NAT, forwarded ports, faults; all in namespaces."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from networld import (
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    NetWorld,
    busybox_root,
    busybox_tar,
    end,
    networld,
    wait_for,
)

__all__ = ["busybox_root", "busybox_tar", "networld"]

pytestmark = pytest.mark.requires("program:dnsmasq", "program:nft", "program:curl")


@pytest.fixture
def world(networld: NetWorld) -> Iterator[NetWorld]:
    yield networld
    for row in json.loads(networld.prlctl("list", "-a", "-j")):
        networld.prlctl("delete", row["uuid"], "--force")
    for path in (networld.root / "etc/vz/networks").glob("*.conf"):
        if "DELETED" not in path.read_text():
            net(networld, "del", path.stem)


def net(world: NetWorld, *words: str, code: int = 0) -> str:
    return world.cli("prlsrvctl", "net", *words, code=code)


def info(world: NetWorld, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(net(world, "info", name, "-j"))
    return found


def address(world: NetWorld, name: str) -> str:
    """The IPv4 address of a container's eth0."""
    words = world.inside(name, "ip", "-4", "addr", "show", "eth0").split()
    return words[words.index("inet") + 1].partition("/")[0]


def fetch(world: NetWorld, url: str, *, where: str = "", name: str = "") -> str:
    if name:
        script = (
            f"printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 30 {NODE4} 8080 | tail -n 1"
        )
        return world.inside(name, script, code=None)
    return world.at(where, "curl", "-s", "-m", "30", "--noproxy", "*", url, code=None)


def dnsmasq(world: NetWorld) -> int:
    (path,) = (world.root / "run/pyvz/networks").glob("*.pid")
    return int(path.read_text())


def test_shared_network(world: NetWorld) -> None:
    world.at(world.node, "nft", "add", "table", "inet", "theirs")
    before = world.rules(), world.links()
    net(world, "add", "nat", "-t", "shared", "--ip", "10.66.0.1/24", "--ip-scope-start",
        "10.66.0.50", "--ip-scope-end", "10.66.0.60")  # fmt: skip
    world.plugged("a", "nat")
    world.plugged("b", "nat")
    first = address(world, "a")
    assert 50 <= int(first.removeprefix("10.66.0.")) <= 60
    assert first != address(world, "b")
    assert "router=10.66.0.1 dns=10.66.0.1" in world.inside("a", "cat", "/lease")
    assert world.pings("a", address(world, "b"))
    assert world.pings("a", OUTSIDE4)  # which has no route back: by NAT
    world.at(world.outside, "ip", "route", "add", "10.66.0.0/24", "via", NODE4)
    assert not world.answering(("", first))
    world.at(world.outside, "ip", "route", "del", "10.66.0.0/24")
    assert ":53 " in world.at(world.node, "ss", "-lun")
    _forwarded_ports(world)
    _outlives_vzd(world)
    assert "in use" in net(world, "del", "nat", code=255)
    mac = world.at(world.node, "ip", "link", "show", "virbr1").split("link/ether ")[1][:17]
    assert mac.startswith("02:")
    world.prlctl("delete", "a", "--force")
    assert mac in world.at(world.node, "ip", "link", "show", "virbr1")
    world.prlctl("delete", "b", "--force")
    net(world, "del", "nat")
    assert (world.rules(), world.links()) == before


def _forwarded_ports(world: NetWorld) -> None:
    world.inside("a", "mkdir /www && echo hello >/www/index.html && httpd -p 80 -h /www")
    net(world, "set", "nat", "--nat-tcp-add", "web,a,8080,80")  # by name: the lease counts
    url = f"http://{NODE4}:8080/index.html"
    assert fetch(world, url, where=world.outside) == "hello\n"
    assert fetch(world, url, where=world.node) == "hello\n"
    assert fetch(world, url, name="b") == "hello\n"  # hairpin
    assert fetch(world, url, name="a") == "hello\n"
    net(world, "set", "nat", "--nat-tcp-del", "web")
    assert fetch(world, url, where=world.outside) != "hello\n"
    net(world, "set", "nat", "--nat-tcp-del", "web", code=1)


def _outlives_vzd(world: NetWorld) -> None:
    server = dnsmasq(world)
    end(world.vzd(), signal.SIGKILL)
    net(world, "list")
    assert dnsmasq(world) == server
    assert world.pings("b", OUTSIDE4)
    end(server, signal.SIGKILL)
    wait_for(lambda: dnsmasq_lives(world, server))


def dnsmasq_lives(world: NetWorld, but: int) -> bool:
    try:
        pid = dnsmasq(world)
        return pid != but and b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False


# A client's question to every DHCPv6 server (RFC 8415); prints the address that it is offered.
SOLICIT = """\
import ipaddress, socket, struct
asked = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
asked.settimeout(1)
asked.bind(("::", 546))
options = struct.pack(">HHHHL2x", 1, 10, 3, 1, 0x02000001)  # who asks
options += struct.pack(">HHLLL", 3, 12, 1, 0, 0) + struct.pack(">HHH", 8, 2, 0)
there = ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0"))
for _ in range(60):
    asked.sendto(b"\\1pvz" + options, there)
    try:
        told = asked.recv(1500)
    except TimeoutError:
        continue
    place = told.index(struct.pack(">HH", 5, 24)) + 4  # OPTION_IAADDR
    print(ipaddress.IPv6Address(told[place : place + 16]))
    break
"""


def test_a_shared_network_of_ipv6(world: NetWorld) -> None:
    before = world.rules(), world.links()
    net(world, "add", "six", "-t", "shared", "--ip6", "fd66::1/64", "--dhcp6-server", "on",
        "--ip6-scope-start", "fd66::50", "--ip6-scope-end", "fd66::60")  # fmt: skip
    card = ("--device-add", "net", "--network", "six")
    world.create("a", *card, "--ipadd", "fd66::9/64", "--gw6", "fd66::1")
    world.create("b", *card, "--dhcp6", "yes")
    assert world.pings("a", OUTSIDE6)  # which has no route back: by NAT
    world.at(world.outside, "ip", "-6", "route", "add", "fd66::/64", "via", NODE6)
    assert not world.answering(("", "fd66::9"))
    world.inside("a", "mkdir /www && echo hello >/www/index.html && httpd -p 80 -h /www")
    net(world, "set", "six", "--nat-tcp-add", "web,a,8080,80")
    assert fetch(world, f"http://[{NODE6}]:8080/index.html", where=world.outside) == "hello\n"
    # The way is advertised, the address is offered.
    wait_for(lambda: "fe80:" in world.near("b", "ip", "-6", "route", "show", "default"))
    offered = ip_address(world.near("b", sys.executable, "-c", SOLICIT, code=0).strip())
    assert ip_address("fd66::50") <= offered <= ip_address("fd66::60")
    world.near("b", "ip", "addr", "add", f"{offered}/128", "dev", "eth0")
    assert world.pings("b", OUTSIDE6)
    for name in ("a", "b"):
        world.prlctl("delete", name, "--force")
    net(world, "del", "six")
    assert (world.rules(), world.links()) == before


def test_dhcp_without_a_server(world: NetWorld) -> None:
    """The container starts, nobody waits, and it is told."""
    with (world.root / "etc/vz/vz.conf").open("a") as conf:
        conf.write('DHCP_WAIT="1"\n')
    net(world, "add", "quiet", "-t", "host-only", "--ip", "10.66.0.1/24")
    uuid = world.create("a", "--device-add", "net", "--network", "quiet", "--dhcp", "yes")
    assert "running" in world.prlctl("status", "a")
    log = world.root / "var/log/pyvz"
    wait_for(lambda: "has no IPv4 address by DHCP" in (log / "vzd.log").read_text())
    assert "net set quiet --dhcp-server on" in (log / "vzd.log").read_text()
    wait_for(lambda: "ve-no-lease" in (log / "events.log").read_text().rpartition("\n")[0])
    events = [json.loads(line) for line in (log / "events.log").read_text().splitlines()]
    [told] = [each for each in events if each["name"] == "ve-no-lease"]
    assert told["uuid"] == uuid.strip("{}")
    assert told["data"]["interface"] == "eth0"
    assert told["data"]["network"] == "quiet"


def test_the_networks_of_every_node(world: NetWorld) -> None:
    before = world.rules(), world.links()
    rows = json.loads(net(world, "list", "-j"))
    assert [(row["Network ID"], row["Type"], row["Bridge"]) for row in rows] == [
        ("Bridged", "bridged", ""), ("Host-Only", "host-only", ""),
    ]  # fmt: skip
    assert world.links() == before[1]  # nobody uses them
    world.plugged("a", "Host-Only")
    assert info(world, "Host-Only")["Slave interfaces"] != ""
    assert "router= dns=" in world.inside("a", "cat", "/lease")
    assert world.pings("a", "10.37.130.1")
    world.inside("a", "ip", "route", "add", "default", "via", "10.37.130.1")
    world.at(world.outside, "ip", "route", "add", "10.37.130.0/24", "via", NODE4)
    assert not world.answering(("a", OUTSIDE4), ("", address(world, "a")))
    # The node boots: nothing of it is left but its files.
    end(world.vzd(), signal.SIGTERM)
    end(dnsmasq(world), signal.SIGKILL)
    for link in world.links():
        if link.startswith("virbr"):
            world.at(world.node, "ip", "link", "del", link)
    world.at(world.node, "nft", "flush", "ruleset")
    net(world, "list")
    wait_for(lambda: "virbr1" in world.links())
    wait_for(lambda: "virbr1" in world.rules())
    world.prlctl("restart", "a")
    world.inside("a", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "20", "-s", "/leased")
    assert world.pings("a", "10.37.130.1")
    # The one that is bound to the uplink cannot be had without a word of the administrator.
    world.prlctl("set", "a", "--device-add", "net", "--network", "Bridged", code=255)
    world.prlctl("delete", "a", "--force")
    net(world, "del", "Host-Only")
    assert "Host-Only" not in net(world, "list")
    assert (world.rules(), world.links()) == before


def test_the_card_of_the_node_moves_into_a_bridge_and_back(world: NetWorld) -> None:
    world.at(world.node, "ip", "route", "add", "203.0.113.0/24", "via", OUTSIDE4)
    before = _network_of(world)
    assert "--force" in net(world, "add", "lan", "-i", "up0", code=255)
    net(world, "add", "lan", "-i", "up0", "--force", "on")
    assert world.reached(NODE4)
    assert "br0" in world.at(world.node, "ip", "route", "get", "203.0.113.7")
    world.create("a", "--device-add", "net", "--network", "lan", "--ipadd", "10.99.0.9/24")
    assert world.reached("10.99.0.9")
    end(world.vzd(), signal.SIGKILL)
    net(world, "list")
    assert world.reached("10.99.0.9")
    assert world.reached(NODE4)
    assert "more than one bridged" in net(world, "add", "lan2", "-i", "up0", code=255)
    world.prlctl("delete", "a", "--force")
    net(world, "del", "lan")
    assert _network_of(world) == before
    assert world.reached(NODE4)
    # A bridge that somebody else has made is used, and lives on.
    world.at(world.node, "ip", "link", "add", "theirs", "type", "bridge")
    net(world, "add", "lan", "-i", "theirs")
    assert info(world, "lan")["Bridge"] == "theirs"
    net(world, "del", "lan")
    assert "theirs" in world.links()


def _network_of(world: NetWorld) -> tuple[list[str], str, str]:
    routes = world.at(world.node, "ip", "-4", "route").splitlines()
    words = sorted(line.replace("proto static", "").strip() for line in routes)
    addresses = world.at(world.node, "ip", "-br", "-4", "addr", "show", "up0")
    return words, addresses, world.at(world.node, "ip", "-br", "-6", "addr", "show", "up0")


def test_private_networks(world: NetWorld) -> None:
    before = world.rules()
    net(world, "add", "ho", "-t", "host-only", "--ip", "10.66.0.1/24")
    for name, last in (("a", 2), ("b", 3), ("c", 130)):
        world.create(name, "--device-add", "net", "--network", "ho",
                     "--ipadd", f"10.66.0.{last}/24")  # fmt: skip
    privnet = ("prlsrvctl", "privnet")
    world.cli(*privnet, "add", "p", "-a", "10.66.0.0/26")
    assert world.pings("a", "10.66.0.3")
    assert not world.answering(("c", "10.66.0.3"))
    assert world.pings("c", "10.66.0.1")  # the node is not concerned
    assert world.cli(*privnet, "list") == (
        "Name              G Netmasks\np                   10.66.0.0/26\n"
    )
    world.cli(*privnet, "set", "p", "--ipadd", "*")
    assert world.pings("c", "10.66.0.3")
    world.cli(*privnet, "set", "p", code=1)
    world.cli(*privnet, "add", "p", code=255)
    world.cli(*privnet, "add", "q", "-a", "10.66.0", code=1)
    world.cli(*privnet, "del", "p")
    world.cli(*privnet, "del", "p", code=255)
    for name in ("a", "b", "c"):
        world.prlctl("delete", name, "--force")
    net(world, "del", "ho")
    assert world.rules() == before


def test_what_cannot_be(world: NetWorld) -> None:
    before = world.rules(), world.links()
    net(world, "add", "one", "-t", "host-only", "--ip", "10.66.0.1/24")
    after = world.rules(), world.links()
    for words, code, part in (
        (("add", "one"), 255, "exists already"),
        (("add", "x", "-t", "bridged"), 1, "--ifname or --mac"),
        (("add", "x", "-i", "nope"), 255, "Failed to find network adapter nope"),
        (("add", "x", "-i", "a" * 16), 1, "at most 15"),
        (("add", "x", "-t", "host-only", "--bridge", "up0"), 255, "not a bridge"),
        (("add", "x", "-t", "host-only", "--ip", "10.66.0.9/16"), 1, "overlaps"),
        (("add", "x", "-t", "host-only", "--ip", f"{NODE4}/16"), 1, "overlaps"),
        (("add", "x", "-t", "shared", "--ip", "10.67.0.1/24", "--ip-scope-start", "10.68.0.1"),
         1, "is not an address of the network"),
        (("add", "x", "-t", "nonsense"), 1, "unknown Virtual Network type"),
        (("add", "x/y",), 1, "cannot be the name"),
        (("set", "one", "--nat-tcp-add", "web,10.66.0.2,80,80"), 1, "shared"),
        (("set", "one", "-n", "two"), 1, "deprecated"),
        (("info", "nope"), 255, "does not exist"),
        (("del", "nope"), 255, "does not exist"),
    ):  # fmt: skip
        assert part in net(world, *words, code=code), words
        assert (world.rules(), world.links()) == after, words
    # VXLAN to another node, and one node less.
    net(world, "add", "ov", "--vxlan", "42", "-i", "up0", "--remote", OUTSIDE4, "--ip",
        "10.67.0.1/24")  # fmt: skip
    assert _floods(world) == 1
    world.at(world.outside, "ip", "link", "add", "vx", "type", "vxlan", "id", "42", "dstport",
             "4789", "remote", NODE4)  # fmt: skip
    world.at(world.outside, "ip", "addr", "add", "10.67.0.2/24", "dev", "vx")
    world.at(world.outside, "ip", "link", "set", "vx", "up")
    assert world.reached("10.67.0.1")
    world.create("a", "--device-add", "net", "--network", "ov", "--ipadd", "10.67.0.3/24")
    assert world.reached("10.67.0.3")
    assert "mtu 1450" in world.inside("a", "ip", "link", "show", "eth0")
    world.prlctl("delete", "a", "--force")
    net(world, "set", "ov", "--remote-del", OUTSIDE4)
    assert _floods(world) == 0
    net(world, "del", "ov")
    net(world, "del", "one")
    assert (world.rules(), world.links()) == before


def _floods(world: NetWorld) -> int:
    """How many nodes a VXLAN sends what it does not know the place of."""
    return world.at(world.node, "bridge", "fdb").count("00:00:00:00:00:00 dev vx42")
