"""The plan of a container's network, its reservations and the options about interfaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvz.errors import (
    AddressInUse,
    BadValue,
    NetworkError,
    NotEnoughResources,
    NotFound,
    Unsupported,
    UsageError,
)
from pyvz.linux.netlink import InterfaceAddress, Link
from pyvz.model.config import Config
from pyvz.model.vzconf import NodeConfig
from pyvz.network import antispoof, base, facts, plan
from pyvz.network.address import Reservations
from pyvz.network.base import Filter, Interface, NetworkPlan, NodeFacts, Proxy, Uplink
from pyvz.operations import netdevice, netinfo
from pyvz.store.paths import Paths

UUID = "1f2e3d4c-0000-4000-8000-00000000000a"
NODE = NodeFacts(
    addresses=frozenset({"10.0.0.1"}),
    uplinks=(Uplink("eth0", ("10.0.0.0/24", "fd00::/64")),),
    bridges={"br0": "br0", "lan": "vznet1"},
    sources=("10.0.0.1",),
)
CARD = "ifname=eth0,mac=00:18:51:aa:bb:cc,network=lan"


def config(**keys: str) -> Config:
    return Config.parse(keys)


def test_routed_addresses() -> None:
    made = plan.plan(UUID, config(IP_ADDRESS="10.0.0.7/24 fd00::7 192.0.2.1"), NODE)
    digest = base.routed_host_name(UUID)
    assert made == NetworkPlan(
        UUID,
        (
            Interface(
                kind="routed",
                name="venet0",
                host_name=digest,
                mac=base.routed_mac(UUID),
                host_mac=base.routed_mac(UUID),
                addresses=("10.0.0.7/24", "192.0.2.1/32", "fd00::7/128"),
                default="46",
                routes=("10.0.0.7", "192.0.2.1", "fd00::7"),
                sources=("10.0.0.1",),
                filter=Filter(mac=True, addresses=("10.0.0.7", "192.0.2.1", "fd00::7")),
            ),
        ),
        (Proxy("10.0.0.7", "eth0"), Proxy("fd00::7", "eth0")),
    )
    assert NetworkPlan.from_json(made.to_json()) == made
    bare = plan.plan(UUID, config(IP_ADDRESS="10.0.0.7/24"), NODE._replace(mask=False))
    assert bare.interfaces[0].addresses == ("10.0.0.7/32",)


def test_a_bridged_card() -> None:
    netif = f"{CARD},gw=10.1.0.1,ip=10.1.0.2/255.255.255.0,ip6=fd01::2/64"
    [card] = plan.plan(UUID, config(NETIF=netif), NODE).interfaces
    assert card == Interface(
        kind="bridged",
        name="eth0",
        host_name="veth51aabbcc",
        mac="00:18:51:aa:bb:cc",
        host_mac="fe:18:51:aa:bb:cc",
        addresses=("10.1.0.2/24", "fd01::2/64"),
        default="4",
        gateways=("10.1.0.1",),
        bridge="vznet1",
        filter=Filter(mac=True, addresses=("10.1.0.2", "fd01::2")),
    )
    [card] = plan.plan(UUID, config(NETIF=f"{CARD},dhcp=yes"), NODE).interfaces
    assert card.filter == Filter(mac=True, addresses=None)
    [card] = plan.plan(UUID, config(NETIF=f"{CARD},mac_filter=off,connected=off"), NODE).interfaces
    assert (card.filter.mac, card.connected) == (False, False)


def test_one_default_route_per_family() -> None:
    both = config(IP_ADDRESS="10.0.0.7 fd00::7", NETIF=f"{CARD},gw=10.1.0.1,ip=10.1.0.2/24")
    venet, card = plan.plan(UUID, both, NODE).interfaces
    assert (venet.default, card.default) == ("6", "4")


def test_a_gateway_waits_for_an_address() -> None:
    given = config(IP_ADDRESS="10.5.0.1", NETIF=f"{CARD},gw=10.1.0.1,dhcp=yes")
    venet, card = plan.plan(UUID, given, NODE).interfaces
    assert (venet.default, card.default, card.gateways) == ("4", "", ())


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"IP_ADDRESS": "10.0.0.1"}, AddressInUse),
        ({"IP_ADDRESS": "127.0.0.1"}, BadValue),
        ({"IP_ADDRESS": "224.0.0.5"}, BadValue),
        ({"IP_ADDRESS": "fe80::5"}, BadValue),
        ({"IP_ADDRESS": "255.255.255.255"}, BadValue),
        ({"NETIF": "ifname=eth0,mac=00:18:51:aa:bb:cc,network=nowhere"}, NetworkError),
        ({"NETIF": f"{CARD},ip=10.0.0.7", "IP_ADDRESS": "10.0.0.7"}, AddressInUse),
        ({"NETIF": f"{CARD};ifname=eth1,mac=00:18:51:aa:bb:cc"}, NetworkError),
        ({"NETIF": "ifname=lo,mac=00:18:51:aa:bb:cc"}, BadValue),
        ({"NETIF": f"{CARD},gw=10.2.0.1,ip=10.1.0.2/24"}, BadValue),
        ({"NETIF": f"{CARD},gw=10.1.0.2,ip=10.1.0.2/24"}, BadValue),
        ({"NETIF": f"{CARD},ip=10.1.0.255/24"}, BadValue),
        ({"NETIF": f"{CARD},ip=10.1.0.0/24"}, BadValue),
        ({"IP_ADDRESS": "10.0.0.255"}, BadValue),  # of the node's network
        ({"IP_ADDRESS": "10.0.0.0"}, BadValue),
    ],
)
def test_what_cannot_be(keys: dict[str, str], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        plan.plan(UUID, config(**keys), NODE)


def test_what_looks_like_all_of_a_network_and_is_not() -> None:
    given = config(IP_ADDRESS="10.5.0.255 10.5.0.0 fd00::", NETIF=f"{CARD},ip=10.9.0.0/31")
    assert plan.plan(UUID, given, NODE).routed == ("10.5.0.255", "10.5.0.0", "fd00::")


def test_the_cards_of_a_machine() -> None:
    given = config(NETIF="ifname=eth0,mac=00:18:51:aa:bb:cc,type=routed,ip=10.5.0.1")
    [tap] = plan.plan(UUID, given, NODE, taps=True).interfaces
    assert tap.tap
    assert tap.host_mac != tap.mac  # else both ends have the same link-local address


def test_rules_of_a_routed_container() -> None:
    made = plan.plan(UUID, config(IP_ADDRESS="10.0.0.7 fd00::7"), NODE)
    batch = antispoof.install("pyvz", made)
    assert all(
        command[verb][kind].get("table", command[verb][kind].get("name"))
        in {f"pyvz-{UUID}", "pyvz-addresses"}
        for command in batch
        for verb in command
        for kind in command[verb]
    )
    text = json.dumps(batch)
    assert '"10.0.0.7"' in text
    assert f'"{antispoof.link_local(made.interfaces[0].mac)}"' in text
    assert antispoof.install("pyvz", NetworkPlan(UUID)) == antispoof.table("pyvz", UUID).drop()


def test_one_more_address_is_one_more_element() -> None:
    addresses = " ".join(f"10.5.{n // 250}.{n % 250 + 1}" for n in range(500))
    old = plan.plan(UUID, config(IP_ADDRESS=addresses), NODE)
    new = plan.plan(UUID, config(IP_ADDRESS=f"{addresses} 10.6.0.1"), NODE)
    batch = antispoof.change("pyvz", old, new)
    assert len(json.dumps(batch)) < 3000
    assert antispoof.change("pyvz", new, old)[-1]["delete"]["element"]["elem"] == ["10.6.0.1"]


def test_link_local_of_a_mac() -> None:
    assert antispoof.link_local("c4:37:72:00:00:01") == "fe80::c637:72ff:fe00:1"


def test_facts_of_a_node() -> None:
    def link(index: int, name: str, kind: str = "", **more: object) -> Link:
        known: dict[str, object] = {"mac": "", "up": True, "master": 0, "mtu": 1500, "alias": ""}
        return Link(index, name, kind, **{**known, "loopback": False, **more})  # type: ignore[arg-type]

    links = [
        link(1, "lo", loopback=True),
        link(2, "eth0"),
        link(3, "br0", "bridge"),
        link(4, "vethx", "veth", alias="pyvz:x"),
        link(5, "eth1", up=False),
    ]
    addresses = [
        InterfaceAddress(1, "127.0.0.1/8", 254),
        InterfaceAddress(2, "10.0.0.1/24", 0),
        InterfaceAddress(2, "fe80::1/64", 253),
        InterfaceAddress(3, "10.3.0.1/16", 0),
        InterfaceAddress(5, "10.4.0.1/16", 0),
    ]
    made = facts.facts(NodeConfig(), links, addresses, {"lan": "br7"})
    assert made.uplinks == (Uplink("eth0", ("10.0.0.0/24",)), Uplink("br0", ("10.3.0.0/16",)))
    assert made.bridges == {"br0": "br0", "lan": "br7"}
    assert made.sources == ("10.0.0.1",)
    assert "10.4.0.1" in made.addresses
    only = NodeConfig(values={"NEIGHBOUR_DEVS": "eth0"}, ve_route_src_dev="br0")
    made = facts.facts(only, links, addresses, {})
    assert made.uplinks == (Uplink("eth0", ("10.0.0.0/24",)),)
    assert made.sources == ("10.3.0.1",)


def test_reservations(tmp_path: Path) -> None:
    made = Reservations(Paths(tmp_path))
    made.set("a", ["10.0.0.7", "fd00::0007"])
    assert (tmp_path / "var/vz/veip/a").read_text() == "10.0.0.7\nfd00::7\n"
    with pytest.raises(AddressInUse):
        made.set("b", ["10.0.0.8", "fd00::7"])
    assert made.of("b") == ()
    assert made.allocate(["10.0.0.7-10.0.0.9"], {"10.0.0.8"}) == "10.0.0.9"
    with pytest.raises(NotEnoughResources):
        made.allocate(["10.0.0.7-10.0.0.7"])
    with pytest.raises(BadValue):
        made.allocate(["10.0.0.x"])
    made.release("a")
    made.release("a")
    made.set("b", ["10.0.0.7"])
    made.set("b", ())
    assert made.all() == {}


def take(dialect: str, *given: tuple[str, str | None], **keys: str) -> netdevice.Taken:
    return netdevice.take(config(**keys), dialect, given)


def test_options_speak_of_the_interface_before_them() -> None:
    made = take(
        "prlctl",
        ("device-add", "net"), ("network", "lan"), ("ipadd", "10.1.0.2/24"), ("gw", "10.1.0.1"),
        ("cpus", "2"),
        ("device-set", "net0"), ("dhcp", "yes"),
        NETIF=CARD,
    )  # fmt: skip
    old, new = made.config.network.interfaces
    assert (old.ifname, old.dhcp, new.ifname, new.network) == ("eth0", True, "eth1", "lan")
    assert (str(new.ip[0]), new.gw) == ("10.1.0.2/24", "10.1.0.1")
    assert made.rest == (("cpus", "2"),)
    assert made.fields == ("network.interfaces",)


def test_shorthands_of_both_tools() -> None:
    made = take("vzctl", ("netif_add", "lan0,00:18:51:00:00:01"), ("ipadd", "10.1.0.2"))
    [card] = made.config.network.interfaces
    assert (card.ifname, card.mac, card.ip[0].ip) == ("lan0", "00:18:51:00:00:01", "10.1.0.2")
    made = take(
        "prlctl", ("ifname", "eth0"), ("ipset", "10.1.1.1"), ("ipset", "10.1.1.2"), NETIF=CARD
    )
    assert [each.ip for each in made.config.network.interfaces[0].ip] == ["10.1.1.1", "10.1.1.2"]
    made = take("prlctl", ("device-disconnect", "net0"), NETIF=CARD)
    assert made.config.text()["NETIF"].endswith(",connected=off")
    assert take("prlctl", ("netif_del", "all"), NETIF=CARD).config.network.interfaces == ()
    made = take("prlctl", ("device-set", "venet0"), ("ipadd", "10.0.0.9"))
    assert made.rest == (("ipadd", "10.0.0.9"),)
    made = take("prlctl", ("device-add", "hdd"), ("size", "10G"))
    assert made.rest == (("device-add", "hdd"), ("size", "10G"))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ((("device-del", "net7"),), NotFound),
        ((("device-del", "venet0"),), Unsupported),
        ((("ifname", "eth9"),), NotFound),
        ((("netif_add", "eth0"),), BadValue),
        ((("netif_add", "a-name-that-is-too-long"),), BadValue),
        ((("device-add", "net"), ("ifname", "eth0")), BadValue),
        ((("device-add", "net"), ("network", "x"), ("type", "routed")), UsageError),
        ((("device-add", "net"), ("mac", "00:18:51:aa:bb:cc")), BadValue),
        ((("device-add", "net"), ("mac", "01:00:00:00:00:00")), BadValue),
        ((("device-set", "venet0"), ("mac", "00:18:51:aa:bb:cc")), Unsupported),
    ],
)
def test_options_that_make_no_sense(
    given: tuple[tuple[str, str | None], ...], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        netdevice.take(config(NETIF=CARD), "prlctl", given)


def test_cards_get_what_nobody_gave_them() -> None:
    bare = config(NETIF="ifname=eth0;ifname=eth1")
    made = netdevice.with_macs(bare, UUID, ())
    one, two = made.network.interfaces
    assert one.mac.startswith("c4:37:72:")
    assert one.mac != two.mac
    assert one.host_mac == "fe" + one.mac[2:]
    assert one.host_ifname == "veth" + one.mac.replace(":", "")[4:]
    again = netdevice.with_macs(bare, UUID, {one.mac})
    assert again.network.interfaces[0].mac != one.mac
    with pytest.raises(BadValue):
        netdevice.with_macs(made, UUID, {one.mac})


def test_what_list_tells_of_a_card() -> None:
    text = f"{CARD},gw=10.1.0.1,dhcp6=yes,mac_filter=off,ip=10.1.0.2/24"
    [given] = config(NETIF=text).network.interfaces
    told = netinfo.card(given._replace(connected=False), full=True)
    assert list(told.items()) == [
        ("enabled", True), ("dev", ""), ("ifname", "eth0"), ("network", "lan"),
        ("mac", "001851AABBCC"), ("card", "virtio"), ("preventpromisc", "off"),
        ("mac_filter", "off"), ("ip_filter", "on"), ("ips", "10.1.0.2/255.255.255.0 "),
        ("dhcp6", "yes"), ("gw", "10.1.0.1"), ("state", "disconnected"),
    ]  # fmt: skip
    routed = netinfo.card(given._replace(type="routed"), full=False)
    assert routed["type"] == "routed"
    assert not routed.keys() & {"network", "dhcp6", "gw"}
