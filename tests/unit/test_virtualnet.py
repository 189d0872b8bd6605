"""Virtual networks as values: settings, files, rules, dnsmasq, tables."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.cli import prlsrvctl_net, prlsrvctl_privnet
from pyvz.errors import (
    BadValue,
    ConfigError,
    NetworkError,
    NotFound,
    Unsupported,
    UsageError,
    VZError,
)
from pyvz.linux.netlink import InterfaceAddress, Link
from pyvz.model.virtualnet import (
    SETTINGS,
    NetworkType,
    Subnet,
    VirtualNetwork,
    bridge_mac,
    check,
    configured,
    overlapping,
)
from pyvz.network import dhcp, nat, privatenet, virtualnet
from pyvz.network.virtualnet import Ground, Port
from pyvz.store.networks import Networks
from pyvz.store.paths import Paths
from pyvz.store.privatenets import PrivateNet, PrivateNets

UUID = "6f1c2d3e-0000-4000-8000-000000000001"


def made(type_: str = "host-only", **settings: str) -> VirtualNetwork:
    blank = VirtualNetwork("net", UUID, NetworkType(type_))
    pairs = [(name.replace("_", "-"), text) for name, text in settings.items()]
    return check(configured(blank, pairs))


def link(index: int, name: str, kind: str = "", **more: Any) -> Link:
    rest = {"mac": f"52:54:00:00:00:{index:02x}", "up": True, "master": 0, "mtu": 1500}
    return Link(index, name, kind, **(rest | {"alias": "", "loopback": False} | more))


GROUND = Ground(
    (link(1, "lo", loopback=True), link(2, "eth0"), link(3, "eth1"), link(4, "br7", "bridge"),
     link(5, "eth2", master=4)),
    (InterfaceAddress(2, "192.0.2.2/24", 0), InterfaceAddress(2, "fe80::1/64", 253)),
)  # fmt: skip


def test_defaults_of_dhcp() -> None:
    subnet = made(ip="10.1.2.1", dhcp_server="on").ipv4
    assert subnet == Subnet("10.1.2.1/24", True, "10.1.2.1", "10.1.2.2", "10.1.2.254")
    assert made(ip="10.1.2.254/24", dhcp_server="on").ipv4.last == "10.1.2.253"
    six = made(ip6="fd00::1", dhcp6_server="on").ipv6
    assert (six.address, six.first, six.last) == ("fd00::1/64", "fd00::2", "fd00::1:0")
    moved = configured(made(ip="10.1.2.1", dhcp_server="on"), [("ip", "10.9.0.1/16")])
    assert check(moved).ipv4.first == "10.9.0.2"


@pytest.mark.parametrize(
    ("type_", "settings"),
    [
        ("bridged", {}),
        ("bridged", {"ifname": "eth0", "ip": "10.0.0.1"}),
        ("bridged", {"ifname": "a" * 16}),
        ("bridged", {"ifname": "a/b"}),
        ("bridged", {"mac": "52:54:00"}),
        ("bridged", {"ifname": "eth0", "vlan": "4095"}),
        ("host-only", {"ip": "10.0.0.0/24"}),
        ("host-only", {"ip": "10.0.0.1/31"}),
        ("host-only", {"ip": "224.0.0.1/24"}),
        ("host-only", {"ip": "fd00::1"}),
        ("host-only", {"dhcp_server": "on"}),
        ("host-only", {"ip": "10.0.0.1", "dhcp_server": "maybe"}),
        ("host-only", {"ip": "10.0.0.1", "dhcp_server": "on", "ip_scope_start": "10.0.1.5"}),
        ("host-only", {"ip": "10.0.0.1", "dhcp_server": "on", "ip_scope_end": "10.0.0.1",
                       "ip_scope_start": "10.0.0.5"}),
        ("host-only", {"ip": "10.0.0.1", "dhcp_server": "on", "dhcp_ip": "10.0.0.255"}),
        ("host-only", {"ip": "10.0.0.1", "nat_tcp_add": "web,10.0.0.2,80,80"}),
        ("host-only", {"ip": "10.0.0.1", "remote": "192.0.2.1"}),
        ("host-only", {"vxlan": "16777216"}),
        ("shared", {"ip": "10.0.0.1", "nat_tcp_add": "web,10.0.0.2,80"}),
        ("shared", {"ip": "10.0.0.1", "nat_tcp_add": "web,10.0.0.2,0,80"}),
        ("shared", {"ip": "10.0.0.1", "nat_tcp_del": "web"}),
        ("shared", {"ip": "10.0.0.1", "description": "two\nlines"}),
        ("shared", {"nonsense": "1"}),
    ],
)  # fmt: skip
def test_what_cannot_be(type_: str, settings: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        made(type_, **settings)


def test_a_range_that_is_not_used_yet() -> None:
    """A file that has it is read all the same, so that the network can be changed or deleted."""
    for wrong in (
        {"ip_scope_start": "10.0.1.5"},
        {"ip_scope_start": "10.0.0.9", "ip_scope_end": "10.0.0.5"},
    ):
        network = made("host-only", ip="10.0.0.1", **wrong)
        with pytest.raises(BadValue):
            check(network, ranges=True)
    check(made("host-only", ip="10.0.0.1", ip_scope_start="10.0.0.5"), ranges=True)


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30))
def test_no_text_breaks_a_setting(name: str, text: str) -> None:
    with contextlib.suppress(VZError):
        check(configured(VirtualNetwork("net", UUID, NetworkType.SHARED), [(name, text)]))


def test_the_mac_is_pinned_and_local() -> None:
    mac = bridge_mac(UUID)
    assert mac == bridge_mac(UUID) != bridge_mac("other")
    assert int(mac[:2], 16) & 3 == 2  # locally administered, not a group


def test_overlaps() -> None:
    network = made(ip="10.1.2.1/24", ip6="fd00::1/64")
    assert overlapping(network, {"10.2.0.1/24": "eth0", "fd01::1/64": "eth0"}) == ""
    assert "of eth0" in overlapping(network, {"10.0.0.1/8": "eth0"})
    assert "of eth0" in overlapping(network, {"fd00::9/48": "eth0"})


def test_files_keep_everything(tmp_path: Path) -> None:
    store = Networks(Paths(tmp_path))
    network = made(
        "shared", ip="10.1.2.1", dhcp_server="on", ip6="fd00::1", description='a "quoted" $text',
        nat_tcp_add="web,10.1.2.9,8080,80", nat_udp_add="dns,ct one".replace(" ", "-") + ",53,53",
    )._replace(bridge="virbr1")  # fmt: skip
    store.save(network)
    assert store.get("net") == network
    path = store.path("net")
    path.write_text(path.read_text() + '# by hand\nTHEIRS="kept"\n')
    store.save(network._replace(description=""))
    assert 'THEIRS="kept"' in path.read_text()
    assert "DESCRIPTION" not in path.read_text()
    overlay = made(vxlan="42", ifname="eth0", remote="192.0.2.9")._replace(name="ov")
    store.save(overlay)
    assert store.get("ov") == overlay
    assert [each.name for each in store.stored()] == ["net", "ov"]
    path.write_text('TYPE="shared"\nIP="nonsense"\n')
    assert [each.name for each in store.stored()] == ["ov"]
    assert [name for name, _ in store.problems()] == ["net"]
    with pytest.raises(ConfigError, match="nonsense"):
        store.get("net")


def test_the_two_of_every_node(tmp_path: Path) -> None:
    store = Networks(Paths(tmp_path))
    assert store.without_file() == ["Bridged", "Host-Only"]
    (tmp_path / "etc/vz/networks").mkdir(parents=True)
    store.remove("Host-Only")
    assert store.without_file() == ["Bridged"]
    assert store.stored() == []
    with pytest.raises(NotFound):
        store.get("Host-Only")
    store.save(made(ip="10.1.2.1")._replace(name="Host-Only"))
    assert store.get("Host-Only").ipv4.address == "10.1.2.1/24"


def test_bridges_are_chosen() -> None:
    assert virtualnet.chosen(made(ip="10.1.2.1"), GROUND, {"virbr1"}).bridge == "virbr2"
    assert virtualnet.chosen(made("bridged", ifname="eth1"), GROUND, ()).bridge == "br0"
    for name in ("eth2", "br7"):  # a port of a bridge, and the bridge itself: it is used
        found = virtualnet.chosen(made("bridged", ifname=name), GROUND, ())
        assert (found.bridge, found.adopted) == ("br7", True)
    with pytest.raises(NetworkError, match="would lose its network"):
        virtualnet.chosen(made("bridged", ifname="eth0"), GROUND, ())
    forced = virtualnet.chosen(made("bridged", ifname="eth0", force="on"), GROUND, ())
    shape = virtualnet.shape(forced, GROUND)
    assert (shape.mac, shape.ports) == ("52:54:00:00:00:02", (Port("eth0", "card"),))
    tagged = virtualnet.chosen(made("bridged", ifname="eth0", vlan="7"), GROUND, ())
    (port,) = virtualnet.shape(tagged, GROUND).ports
    assert (port.name, port.kind, dict(port.attributes)) == (
        "eth0.7", "vlan", {"link": 2, "vlan_id": 7},
    )  # fmt: skip
    by_mac = made("bridged", mac="52:54:00:00:00:03")
    assert virtualnet.card(by_mac, GROUND) == "eth1"
    with pytest.raises(NetworkError, match="Failed to find"):
        virtualnet.card(made("bridged", ifname="eth9"), GROUND)


def test_shape_of_a_vxlan() -> None:
    network = made(vxlan="42", ifname="eth0", remote="192.0.2.9", ip="10.1.2.1")
    shape = virtualnet.shape(network._replace(bridge="virbr1"), GROUND)
    assert shape.mtu == 1450
    (port,) = shape.ports
    assert port.remotes == ("192.0.2.9",)
    assert dict(port.attributes)["vxlan_local"] == "192.0.2.2"


DNSMASQ = """\
# Virtual network net.  Made by vzd: change it with prlsrvctl net set.
interface=virbr1
except-interface=lo
bind-dynamic
no-hosts
pid-file=/run/p
dhcp-leasefile=/lib/l
dhcp-authoritative
dhcp-no-override
quiet-dhcp
quiet-dhcp6
strict-order
domain-needed
bogus-priv
dhcp-range=10.1.2.2,10.1.2.254,255.255.255.0,12h
dhcp-lease-max=253
dhcp-option=option:router,10.1.2.1
dhcp-option=option:dns-server,10.1.2.1
dhcp-range=fd00::2,fd00::1:0,64,12h
enable-ra
dhcp-option=option6:dns-server,[fd00::1]
"""


def test_configuration_of_dnsmasq() -> None:
    places = dhcp.Files(Path("/lib/c"), Path("/lib/l"), Path("/run/p"))
    network = made("shared", ip="10.1.2.1", dhcp_server="on", ip6="fd00::1", dhcp6_server="on")
    assert dhcp.config(network._replace(bridge="virbr1"), places) == DNSMASQ
    closed = made(ip="10.1.2.1", dhcp_server="on", ip6="fd00::1", dhcp6_server="on")
    text = dhcp.config(closed._replace(bridge="virbr1"), places, mtu=1450)
    for line in ("port=0", "dhcp-option=option:router", "ra-param=virbr1,0,0"):
        assert line in text.splitlines()
    assert text.endswith("dhcp-option=option:mtu,1450\n")


def test_without_dnsmasq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dhcp, "_program", lambda: None)
    with pytest.raises(Unsupported, match="dnsmasq is not installed") as caught:
        dhcp.Server(Paths(tmp_path), UUID).ensure("")
    assert "dnsmasq-base" in caught.value.hint


def test_leases(tmp_path: Path) -> None:
    places = dhcp.Files(tmp_path / "c", tmp_path / "l", tmp_path / "p")
    assert dhcp.leases(places) == ()
    places.leases.write_text(
        "1700000000 c4:37:72:00:00:01 10.1.2.50 ct1 *\nduid 00:01\n1700 1 fd00::5 ct1 00:04\n"
    )
    assert dhcp.leases(places) == (
        (1700000000, "c4:37:72:00:00:01", "10.1.2.50", "ct1", ""),
        (1700, "1", "fd00::5", "ct1", "00:04"),
    )


def test_rules_name_only_our_table() -> None:
    sides = [
        nat.Side(NetworkType.HOST_ONLY, "virbr1", ("10.1.2.1/24",)),
        nat.Side(NetworkType.SHARED, "virbr2", ("10.3.0.1/24",),
                 (nat.Redirection("tcp", 8080, "10.3.0.5", 80),)),
    ]  # fmt: skip
    for batch in (nat.rules("pyvz", sides), nat.rules("pyvz", ())):
        assert {_table(command) for command in batch} == {"pyvz-networks"}
    assert len(nat.rules("pyvz", [nat.Side(NetworkType.BRIDGED, "br0")])) == 2  # dropped
    chains = [
        c["add"]["chain"]["name"] for c in nat.rules("pyvz", sides) if "chain" in c.get("add", {})
    ]
    assert chains == ["forward", "postrouting", "prerouting", "output"]


def test_private_networks_do_not_overlap_in_a_set() -> None:
    nets = privatenet.PrivateNetwork("p", ("10.0.0.0/24", "10.0.0.0/25", "fd00::/64"))
    batch = privatenet.rules("pyvz", [nets])
    assert {_table(command) for command in batch} == {"pyvz-privnet"}
    assert str(batch).count("10.0.0.0") == 8  # once per rule and table
    assert privatenet.rules("pyvz", []) == [c for t in privatenet.tables("pyvz") for c in t.drop()]


def _table(command: dict[str, Any]) -> str:
    ((_, what),) = command.items()
    ((kind, value),) = what.items()
    return str(value["name"] if kind == "table" else value["table"])


def test_files_of_private_networks(tmp_path: Path) -> None:
    store = PrivateNets(Paths(tmp_path))
    with store.locked():
        store.save(PrivateNet("p", ("10.0.0.0/24", "*"), is_global=True))
    assert store.all() == [PrivateNet("p", ("10.0.0.0/24", "*"), is_global=True)]
    (tmp_path / "etc/vz/privnets/p.conf").write_text('NETS="10.0.0"\n')
    with pytest.raises(ConfigError):
        store.all()
    with pytest.raises(BadValue):
        store.exists("../p")


REPLY = {
    "name": "a-rather-long-name", "uuid": UUID, "type": "shared", "bound": "", "bridge": "virbr1",
    "adopted": False, "force": False, "description": "", "slaves": ["veth1", "veth2"], "up": True,
    "problem": "", "blocked": "", "vlan": 0, "vxlan": 0, "remotes": [],
    "ipv4": {"address": "10.1.2.1/24", "mask": "255.255.255.0", "dhcp": True,
             "server": "10.1.2.1", "first": "10.1.2.2", "last": "10.1.2.9"},
    "ipv6": {"address": "", "mask": "", "dhcp": False, "server": "", "first": "", "last": ""},
    "forwards": [{"protocol": "tcp", "name": "web", "target": "ct1", "port": 8080,
                  "target_port": 80}],
}  # fmt: skip


def test_tables_as_the_original_prints_them() -> None:
    assert prlsrvctl_net.table([REPLY]) == (
        "Network ID        Type      Bound To       Bridge         Slave interfaces\n"
        "a-rather-long-n~  shared                   virbr1         veth1,veth2    \n"
    )
    assert prlsrvctl_net.table([REPLY], slaves=False).endswith("virbr1         \n")
    assert prlsrvctl_net.info_text(REPLY) == (
        "Network ID: a-rather-long-name\nType: shared\nBound To: \nBridge: virbr1\n"
        "Slave interfaces: veth1,veth2\nAdapter:\n  IP address: 10.1.2.1\n"
        "  Subnet mask: 255.255.255.0\n  IPv6 address: \n  IPv6 subnet mask: \n"
        "DHCPv4 server:\n  Server address: 10.1.2.1\n  IP scope start address: 10.1.2.2\n"
        "  IP scope end address: 10.1.2.9\n \nNAT server:\nTCP rules:\n"
        "    web redirect IP/VM id=ct1 in port=8080 redirect port=80\n"
    )
    assert prlsrvctl_privnet.table(
        [{"name": "p", "nets": ["10.0.0.0/24", "*"], "is_global": True}]
    ) == ("Name              G Netmasks\np                 x 10.0.0.0/24 *\n")
