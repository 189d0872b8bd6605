"""Grammars: for every value that can be read, parse(format(value)) == value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue
from pyvz.model import grammar as g
from pyvz.model import grammar_disk as gd
from pyvz.model import grammar_list as gl
from pyvz.model import grammar_net as gn
from pyvz.model.params_security import CAPABILITY_GRAMMAR, FEATURES_GRAMMAR
from pyvz.units import UNLIMITED

AMOUNT = st.integers(0, UNLIMITED)
PAIRS = st.builds(g.Pair, AMOUNT, AMOUNT)
WORD = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,10}", fullmatch=True)
IFNAME = st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)
PATH = st.from_regex(r"(/[a-zA-Z0-9_-]{1,8}){1,4}", fullmatch=True)
MAC = st.from_regex(r"0[02468ace](:[0-9a-f]{2}){5}", fullmatch=True)
IPV4 = st.builds(
    gl.Address,
    st.ip_addresses(v=4).map(str).filter(lambda ip: ip != "0.0.0.0"),
    st.one_of(st.just(""), st.integers(0, 32).map(str), st.just("255.255.240.0")),
)
IPV6 = st.builds(
    gl.Address,
    st.ip_addresses(v=6).map(str),
    st.one_of(st.just(""), st.integers(0, 128).map(str)),
)
FLAGS = st.dictionaries(st.sampled_from(("nfs", "sit", "time", "later")), st.booleans()).map(
    lambda d: gl.Flags(
        frozenset(k for k, v in d.items() if v), frozenset(k for k, v in d.items() if not v)
    )
)


def unique(values: st.SearchStrategy[Any], key: Any) -> st.SearchStrategy[Any]:
    return st.lists(values, unique_by=key, max_size=4).map(tuple)


CASES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (g.YesNo(), st.booleans()),
    (g.Integer(0, 7), st.integers(0, 7)),
    (g.Integer(), AMOUNT),
    (g.Factor(), st.integers(0, 10**9 - 1).map(lambda n: n / 1000)),
    (g.PAGES, PAIRS),
    (g.BYTES, PAIRS),
    (g.KIBIBYTES, PAIRS),
    (g.COUNT, PAIRS),
    (g.Amount(1), AMOUNT),
    (g.Choice(("a", "b")), st.sampled_from(("a", "b"))),
    (g.Text(), st.text(st.characters(exclude_categories=("C",)), max_size=20).map(str.strip)),
    (g.EscapedText(), st.text().map(lambda text: text.replace("\0", ""))),
    (g.Name(), st.from_regex(r"[A-Za-z0-9+_.{}]{3,20}", fullmatch=True)),
    (g.Uuid(), st.uuids().map(str)),
    (
        g.Hostname(),
        st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{1,8}){0,2}", fullmatch=True),
    ),
    (g.CpuList(auto=True), st.sets(st.integers(0, 300), min_size=1).map(g.join_ranges)),
    (g.CpuList(auto=True), st.sampled_from(("", "auto"))),
    (g.Guarantee(), st.one_of(st.none(), st.integers(0, 100))),
    (
        g.Environment(),
        st.lists(
            st.tuples(
                st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True),
                st.text(st.characters(exclude_categories=("C",))),
            )
        ).map(tuple),
    ),
    (gl.OnOffFlags(("nfs", "sit")), FLAGS),
    (
        gl.DevNodes(),
        unique(
            st.builds(
                gl.DeviceNode,
                st.sampled_from(("net/tun", "fuse", "sda1", "mapper/a-b")),
                st.sampled_from(("r", "w", "rw", "none")),
            ),
            lambda x: x.name,
        ),
    ),
    (
        gl.Devices(),
        unique(
            st.builds(
                gl.DeviceAccess,
                st.sampled_from("bc"),
                st.integers(0, 4095),
                st.one_of(st.none(), st.integers(0, 255)),
                st.sampled_from(("r", "rw", "rwmq", "none")),
            ),
            lambda x: x[:3],
        ),
    ),
    (gl.Addresses(), unique(st.one_of(IPV4, IPV6), lambda x: x)),
    (gl.Nameservers(), unique(st.ip_addresses().map(str), lambda x: x)),
    (
        gl.Domains(),
        unique(st.from_regex(r"[a-z]{1,8}(\.[a-z]{2,5}){0,2}", fullmatch=True), lambda x: x),
    ),
    (gl.TEMPLATES, unique(WORD, lambda x: x)),
    (gl.INTERFACES, unique(IFNAME, lambda x: x)),
    (
        gl.PCI,
        unique(
            st.from_regex(r"([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", fullmatch=True),
            lambda x: x,
        ),
    ),
    (
        gl.Rates(),
        unique(
            st.builds(
                gl.Rate, st.one_of(st.just("*"), IFNAME), st.integers(0, 15), st.integers(0, 10**9)
            ),
            lambda x: x[:2],
        ),
    ),
    (
        gl.BindMounts(),
        unique(
            st.builds(
                gl.BindMount,
                st.one_of(st.just(""), PATH),
                PATH,
                st.lists(st.sampled_from(gl.BIND_OPTIONS), unique=True).map(tuple),
            ),
            lambda x: x.target,
        ),
    ),
    (gl.MemInfo(), st.one_of(st.just("none"), st.integers(1, 9999).map("pages:{}".format))),
    (
        gn.NetIfs(),
        unique(
            st.builds(
                gn.NetIf,
                IFNAME,
                mac=st.one_of(st.just(""), MAC),
                host_mac=st.one_of(st.just(""), MAC),
                host_ifname=st.one_of(st.just(""), IFNAME),
                type=st.sampled_from(("", "routed", "bridge")),
                network=st.one_of(st.just(""), WORD),
                vport=st.sampled_from(("", "ovs")),
                gw=st.one_of(st.just(""), st.ip_addresses(v=4).map(str)),
                gw6=st.one_of(st.just(""), st.ip_addresses(v=6).map(str)),
                mac_filter=st.booleans(),
                ip_filter=st.booleans(),
                configure=st.sampled_from(("", "all", "none")),
                dhcp=st.booleans(),
                dhcp6=st.booleans(),
                ip=unique(IPV4, lambda x: x),
                ip6=unique(IPV6, lambda x: x),
                other=st.sampled_from(((), (("later", "1"),))),
                ifaceid=st.just(""),
            ),
            lambda x: x.ifname,
        ),
    ),
    (
        gd.Disks(),
        st.lists(
            st.builds(
                gd.DiskEntry,
                uuid=st.one_of(st.just(""), st.uuids().map(str)),
                size=st.integers(0, 2**40),
                enabled=st.booleans(),
                mnt=st.one_of(st.just(""), PATH),
                mnt_opts=st.sampled_from(("", "ro")),
                autocompact=st.sampled_from((None, True, False)),
                storage_url=st.sampled_from(("", "rbd://pool/x")),
                image=st.one_of(st.just(""), PATH.map(lambda p: p + ",with=comma")),
                other=st.sampled_from(((), (("later", "1"),))),
                device=st.just(""),
            ),
            max_size=3,
        ).map(tuple),
    ),
]


@pytest.mark.parametrize(("kind", "values"), CASES, ids=lambda x: type(x).__name__)
def test_round_trip(kind: Any, values: st.SearchStrategy[Any]) -> None:
    @given(values)
    def check(value: Any) -> None:
        assert kind.parse(kind.format(value)) == value

    check()


GRAMMARS = list({type(kind).__name__: kind for kind, _ in CASES}.values())


@pytest.mark.parametrize("kind", GRAMMARS, ids=lambda kind: type(kind).__name__)
def test_any_text_is_read_or_refused(kind: Any) -> None:
    @given(st.text() | st.text("0123456789abk:,;=/-. unlimitedyeso", max_size=30))
    def check(text: str) -> None:
        try:
            value = kind.parse(text)
        except BadValue:
            return
        assert kind.parse(kind.format(value)) == value

    check()


@pytest.mark.parametrize(
    ("kind", "text", "stored"),
    [
        (g.PAGES, "256M", "65536:65536"),
        (g.PAGES, "0:1G", "0:262144"),
        (g.PAGES, "10P", "10:10"),
        (g.PAGES, "unlimited", f"{UNLIMITED}:{UNLIMITED}"),
        (g.PAGES, "1B", "1:1"),
        (g.BYTES, "1K:2K", "1024:2048"),
        (g.KIBIBYTES, "2G:2.2G", "2097152:2306868"),
        (g.COUNT, "100", "100:100"),
        (g.CpuList(), "5,0-3,4", "0-5"),
        (g.CpuList(), "all", ""),
        (g.EscapedText(), "a=20b=0A", "a=20b=0A"),
        (g.EscapedText(), "plain text", "plain=20text"),
        (FEATURES_GRAMMAR, "time:on,nfs:off", "nfs:off time:on"),
        (CAPABILITY_GRAMMAR, "net_admin:on", "NET_ADMIN:on"),
        (gl.Addresses(), "0.0.0.0", ""),
        (gl.Addresses(), "10.0.0.1/24,10.0.0.1/24 fe80::1/64", "10.0.0.1/24 fe80::1/64"),
        (gl.DevNodes(), "/dev/net/tun:rw", "net/tun:rw"),
        (gl.Domains(), "Example.com. a", "Example.com a"),
        (
            gn.NetIfs(),
            "ifname=eth0,mac=00185100aabb,ip=10.0.0.2/255.255.255.0:10.0.0.3,ip6=::1/64,::2/64",
            "ifname=eth0,mac=00:18:51:00:aa:bb,ip=10.0.0.2/255.255.255.0:10.0.0.3,ip6=::1/64,::2/64",
        ),
        (gd.Disks(), "size=1G,image=a,b=c", "size=1048576,enabled=yes,image=a,b=c"),
    ],
)
def test_stored_form(kind: Any, text: str, stored: str) -> None:
    assert kind.format(kind.parse(text)) == stored


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (g.Integer(8, 500000), "7"),
        (g.Integer(8, 500000), "\u0661\u0662"),
        (g.Integer(), "-1"),
        (g.COUNT, "1K"),
        (g.PAGES, "1:2:3"),
        (g.PAGES, "lots"),
        (g.YesNo(), "maybe"),
        (g.Hostname(), "-a"),
        (g.Hostname(), "a" * 65),
        (g.Hostname(), "a b"),
        (g.CpuList(), "3-1"),
        (g.CpuList(), "auto"),
        (g.CpuList(), "0-99999"),
        (g.Guarantee(), "101"),
        (g.Environment(), "A='b"),
        (g.Environment(), "1A=b"),
        (gl.Addresses(), "10.0.0.256"),
        (gl.Addresses(), "10.0.0.1/33"),
        (gl.Addresses(), "10.0.0.1/255.0.255.0"),
        (gl.DevNodes(), "../etc:rw"),
        (gl.DevNodes(), "sda:x"),
        (gl.Devices(), "d:1:2:rw"),
        (gl.BindMounts(), "relative"),
        (gl.BindMounts(), "/a:/b,exec"),
        (gl.BindMounts(), "/a/../../b"),
        (gl.Rates(), "*:16:5"),
        (gl.PCI, "1"),
        (gn.NetIfs(), "ifname=a;ifname=a"),
        (gn.NetIfs(), "mac=00:00:00:00:00:00"),
        (gn.NetIfs(), "ifname=eth0,mac=01:00:00:00:00:00"),
        (gn.NetIfs(), "ifname=" + "x" * 16),
        (gd.Disks(), "size=0"),
        (gd.Disks(), "uuid=x"),
    ],
)
def test_refused(kind: Any, text: str) -> None:
    with pytest.raises(BadValue):
        kind.parse(text)


def test_changing_lists() -> None:
    addresses = gl.Addresses()
    both = addresses.add(addresses.parse("10.0.0.1"), "10.0.0.2/24")
    assert addresses.format(both) == "10.0.0.1 10.0.0.2/24"
    assert addresses.remove(both, "10.0.0.2") == addresses.parse("10.0.0.1")
    assert addresses.remove(both, "all") == ()
    with pytest.raises(BadValue, match="not there"):
        addresses.remove(both, "10.0.0.9")
    nodes = gl.DevNodes()
    assert nodes.format(nodes.merge(nodes.parse("fuse:rw"), "net/tun:rw fuse:none")) == "net/tun:rw"
    with pytest.raises(BadValue, match="is not one of"):
        FEATURES_GRAMMAR.merge(None, "wings:on")
    interfaces = gn.NetIfs().add((), "eth0,00:18:51:00:00:01,veth1")
    changed = gn.change_netif(interfaces[0], "ipadd", "10.0.0.5/24")
    changed = gn.change_netif(changed, "ipadd", "fd00::1/64")
    assert (changed.ip[0].ip, changed.ip6[0].ip) == ("10.0.0.5", "fd00::1")
    assert gn.change_netif(changed, "ipdel", "all").ip == ()
    assert gn.NetIfs().remove(interfaces, "eth0") == ()
