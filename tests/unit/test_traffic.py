"""Traffic as values: classes, trees of HTB, counters, filters, and the batch of nftables."""

from __future__ import annotations

import ipaddress
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.errors import BadValue, ConfigError, UsageError
from pyvz.model import grammar_firewall
from pyvz.model.config import Config
from pyvz.model.grammar_firewall import Firewall, Firewalls
from pyvz.model.grammar_list import Rate
from pyvz.model.vzconf import NodeConfig
from pyvz.network import accounting, classes, shaping, traffic
from pyvz.network.accounting import EMPTY, Record
from pyvz.network.classes import TrafficClass
from pyvz.operations import netdevice
from pyvz.store import trafficslots
from pyvz.store.paths import Paths

GOLDEN = Path(__file__).with_name("golden") / "traffic.json"
NETWORKS = st.builds(
    lambda number, length, bits: TrafficClass(
        number, str(ipaddress.ip_network((bits >> (32 - length) << (32 - length), length)))
    ),
    st.integers(0, 15),
    st.integers(0, 32),
    st.integers(0, 2**32 - 1),
)


@given(st.lists(NETWORKS, max_size=8), st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_the_most_specific_network_decides(found: list[TrafficClass], numbers: list[int]) -> None:
    spans = classes.spans(tuple(found), 4)
    assert (spans[0].first, spans[-1].last) == ("0.0.0.0", "255.255.255.255")
    edges = [(int(ipaddress.ip_address(x.first)), int(ipaddress.ip_address(x.last))) for x in spans]
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(edges))
    probes = {*numbers, *(x for edge in edges for x in edge)}
    for number in probes:
        address = ipaddress.ip_address(number)
        best = (-1, 1)
        for each in found:
            network = ipaddress.ip_network(each.network)
            if address in network and network.prefixlen >= best[0]:
                best = (network.prefixlen, each.number)
        [span] = [x for x, (a, b) in zip(spans, edges, strict=True) if a <= number <= b]
        assert span.number == best[1]


def test_file_of_classes() -> None:
    found = classes.parse("# words\n\n1 0.0.0.0/0\n2 10.0.0.0/8 # lan\n3 fd00::/8\n")
    assert [x.number for x in found] == [1, 2, 3]
    assert classes.parse(classes.DEFAULT) == ((1, "0.0.0.0/0"), (1, "::/0"))
    for bad in ("16 10.0.0.0/8", "1", "1 10.0.0.1/8", "x 10.0.0.0/8", "1 10.0.0.0/8 more"):
        with pytest.raises(ConfigError, match="line 2"):
            classes.parse(f"1 ::/0\n{bad}\n")


def node(**values: str) -> shaping.Policy:
    return shaping.policy(NodeConfig.parse({"TRAFFIC_SHAPING": "yes"} | values), "eth0")


def test_rates() -> None:
    policy = node(BANDWIDTH="eth0:100000 eth1:10", TOTALRATE="*:1:4000 eth0:2:9000", RATE="*:1:8")
    assert (policy.bandwidth, policy.totals, policy.rates) == (100000, {1: 4000, 2: 9000}, {1: 8})
    own = (Rate("*", 1, 500), Rate("eth1", 2, 7))
    found = shaping.limits(policy, own, bound=False, uplink="eth0")
    assert found == {1: (500, 4000), 2: (shaping.SMALLEST, 9000)}
    assert shaping.limits(policy, own, bound=True)[1] == (500, 500)
    # Class 0 is never shaped; a rate without a total is bound by the line.
    more = shaping.limits(policy, (Rate("*", 0, 1), Rate("*", 5, 70)), bound=False)
    assert 0 not in more
    assert more[5] == (70, 100000)
    leaves = shaping.sending(policy, more, 3)
    assert [(hex(x.minor), x.parent) for x in leaves][-1] == ("0x35", shaping.ROOT)
    assert leaves[0].parent == 1
    assert shaping.receiving({}) == ()
    assert max(x.rate for x in shaping.receiving(found)) == 9000
    with pytest.raises(BadValue):
        shaping.slot_for("x", {str(n): n for n in range(1, shaping.LAST_SLOT + 1)})
    assert shaping.slot_for("x", {"a": 1, "b": 3}) == 2
    for bad in ("eth0:1:5", "eth0:16:5:5", "a b:1:1:1", "eth0:1:x:1"):
        with pytest.raises(BadValue):
            shaping.parse_entry(bad)
    for text in ("eth0", "eth0:x", ":1"):
        with pytest.raises(BadValue):
            shaping.parse_bandwidth(text)


def test_slots_are_kept(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    with trafficslots.held(paths) as slots:
        slots["a"] = 1
    with trafficslots.held(paths) as slots:
        assert slots == {"a": 1}
        slots.clear()
    assert not (paths.run / "shaping.json").exists()
    (paths.run / "shaping.json").write_text("[nonsense")
    with trafficslots.held(paths) as slots:
        assert slots == {}


def test_counters_count_once(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert accounting.load(paths, "a") == EMPTY
    record = EMPTY.seen("t1", {"in-1-4": (1, 10)}).seen("t1", {"in-1-4": (2, 20)})
    for _ in range(2):  # written as often as you like
        accounting.save(paths, "a", record)
        record = accounting.load(paths, "a")
    assert accounting.total(record) == {"in-1-4": (2, 20)}
    record = record.seen("t2", {"in-1-4": (1, 5), "out-1-6": (3, 30)})
    assert accounting.total(record) == {"in-1-4": (3, 25), "out-1-6": (3, 30)}
    assert accounting.traffic(accounting.total(record)) == [(1, 25, 3, 30, 3)]
    assert accounting.traffic(accounting.total(record), versions="6") == [(1, 0, 0, 30, 3)]
    # Reset: what the table shows is nothing.
    zero = Record({"in-1-4": (-1, -5)}, "t2", {"in-1-4": (1, 5)})
    assert accounting.traffic(accounting.total(zero)) == []
    assert accounting.total(zero.seen("t2", {"in-1-4": (2, 9)})) == {"in-1-4": (1, 4)}
    (paths.lib / "traffic/a.json").write_text('{"done": 1}')
    assert accounting.load(paths, "a") == EMPTY


def test_firewall_grammar() -> None:
    text = "ifname=eth0,fw=on,in=deny,in_rule=tcp * 22 10.0.0.0/8 *,out_rule=udp * 1-9 fd00::1 *"
    [found] = Firewalls().parse(text + ";ifname=venet0")[:1]
    assert Firewalls().format((found, Firewall("venet0"))) == text
    given_ = [("fw-policy", "deny"), ("fw", "on"), ("fw-direction", "out"), ("fw-rule", "")]
    made = grammar_firewall.change(found, given_)
    assert made.outgoing == grammar_firewall.Side("deny")
    assert made.incoming == found.incoming
    for bad in (
        [("fw-policy", "deny")],
        [("fw-rule", "* * * * *")],
        [("fw-direction", "in")],
        [("fw", "maybe")],
        [("fw-direction", "sideways"), ("fw-policy", "deny")],
        [("fw-direction", "in"), ("fw-policy", "drop")],
    ):
        with pytest.raises(UsageError):
            grammar_firewall.change(found, bad)
    for rule in ("tcp", "tcp 1.2.3.4 * ::1 *", "gre * 1 * *", "icmp * 1 * *", "tcp * 9-3 * *"):
        with pytest.raises(BadValue):
            grammar_firewall.parse_rule(rule)
    for stored in ("fw=on", "ifname=eth0,what=1", "ifname=eth0,fw=perhaps"):
        with pytest.raises(BadValue):
            Firewalls().parse(stored)


def test_options_about_filters_belong_to_an_interface() -> None:
    config = Config.parse({"NETIF": "ifname=eth0;ifname=eth1", "FIREWALL": "ifname=eth1,fw=on"})
    words = [
        ("device-set", "net0"), ("fw-rule", "tcp * 22 * *"), ("fw-direction", "in"),
        ("device-set", "venet0"), ("fw", "on"), ("device-del", "net1"), ("cpus", "2"),
    ]  # fmt: skip
    taken = netdevice.take(config, "prlctl", words)
    assert taken.rest == (("cpus", "2"),)
    assert "network.firewalls" in taken.fields
    found = {x.ifname: x for x in taken.config.network.firewalls}
    assert str(found["eth0"].incoming.rules[0]) == "tcp * 22 * *"
    assert found["venet0"].enabled
    assert "eth1" not in found


def test_batch_of_one_container() -> None:
    """The whole batch, as nft gets it; written anew when the file is missing."""
    filtered = Firewalls().parse(
        "ifname=eth0,fw=on,in=deny,in_rule=tcp * 22 10.0.0.0/8 *,in_rule=icmp * * * *,"
        "in_rule=udp * 1000-2000 fd00::/8 *,out_rule=* * * 192.0.2.1 *"
    )[0]
    found = classes.parse("0 10.0.0.0/8\n2 10.1.0.0/16\n3 fd00::/8")
    limits = shaping.limits(node(TOTALRATE="*:1:4000 *:2:8000"), (), bound=False)
    rules = traffic.Rules(
        "abc",
        (traffic.Watched("veth01", filtered), traffic.Watched("veth02")),
        {version: classes.spans(found, version) for version in (4, 6)},
        limits,
        3,
        "ifb-test",
    )
    own = traffic.table("pyvz", "u-1")
    now = traffic.Present("abc", {}, ("veth01-in",), ("veth01-flows4",))
    lines = [json.dumps(each) for each in traffic.install(own, rules, now)]
    if not GOLDEN.exists():
        GOLDEN.write_text("\n".join(lines) + "\n")
    assert lines == GOLDEN.read_text().splitlines()
    assert all('"pyvz-traffic-u-1"' in line for line in lines)
