"""Chains of others, as libnftables lists them (what is here was listed beside the real ones)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from pyvz.network import barrier
from pyvz.network.barrier import FORWARD, INPUT, Barrier

LAN = ip_network("10.66.0.0/24")
COUNTED = {"counter": {"packets": 0, "bytes": 0}}


def table(name: str, *objects: dict[str, Any], family: str = "inet") -> dict[str, Any]:
    """A listing of one table; objects: chains and rules without the words that all of them have."""
    listed: list[dict[str, Any]] = [{"metainfo": {"version": "1.0.6"}}]
    listed.append({"table": {"family": family, "name": name, "handle": 7}})
    for each in objects:
        kind = "chain" if "name" in each else "rule" if "chain" in each else "set"
        listed.append({kind: {"family": family, "table": name, **each}})
    return {"nftables": listed}


def hook(name: str, where: str, policy: str) -> dict[str, Any]:
    return {"name": name, "type": "filter", "hook": where, "prio": 0, "policy": policy}


def rule(chain: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"chain": chain, "expr": list(expr)}


def device(name: str, key: str = "iifname") -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}


def field(name: str, value: object) -> dict[str, Any]:
    left = {"payload": {"protocol": "ip", "field": name}}
    return {"match": {"op": "==", "left": left, "right": value}}


FIREWALLD = table(
    "firewalld",
    hook("filter_INPUT", "input", "accept"),
    hook("filter_FORWARD", "forward", "accept"),
    {"name": "filter_FORWARD_ZONES"},
    rule("filter_INPUT", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
    rule("filter_FORWARD", {"jump": {"target": "filter_FORWARD_ZONES"}}),
    rule("filter_FORWARD", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}),
    rule("filter_FORWARD_ZONES", device("venet*"), {"goto": {"target": "filter_FWD_pyvz"}}),
    rule("filter_IN_libvirt_allow", field("dport", 67), {"accept": None}),
)
DOCKER = table(
    "filter",
    {"name": "DOCKER-USER"},
    hook("FORWARD", "forward", "drop"),
    rule("DOCKER-USER", COUNTED, {"return": None}),
    rule("FORWARD", COUNTED, {"jump": {"target": "DOCKER-USER"}}),
    rule("FORWARD", device("docker0", "oifname"), COUNTED, {"jump": {"target": "DOCKER"}}),
    family="ip",
)


def test_firewalld_ends_in_a_reject() -> None:
    found = barrier.barriers(FIREWALLD)
    assert [(each.hook, each.owner, each.handle) for each in found] == [
        (INPUT, barrier.FIREWALLD, 7), (FORWARD, barrier.FIREWALLD, 7),
    ]  # fmt: skip
    for each in found:
        assert each.stops("virbr1", [LAN])
        assert not each.stops("venet*")
        assert not each.stops("venet01234567")
    assert barrier.advice(found[1], "vme*", "pyvz") == (
        "firewall-cmd --zone=pyvz --change-interface=vme+"
    )


def test_docker_drops_by_policy() -> None:
    [found] = barrier.barriers(DOCKER)
    assert found.title == "Docker (the chain FORWARD of the table ip filter)"
    assert found.stops("virbr1", [LAN])
    assert not found.stops("docker0")
    assert barrier.advice(found, "venet*", "pyvz") == (
        "iptables -I DOCKER-USER -i venet+ -j ACCEPT; iptables -I DOCKER-USER -o venet+ -j ACCEPT"
    )
    assert barrier.advice(found._replace(table=found.table._replace(family="ip6")), "b0", "").count(
        "ip6tables -I DOCKER-USER"
    )


def test_ufw_is_told_by_ufw() -> None:
    listed = table(
        "filter",
        {"name": "ufw-user-forward"},
        hook("INPUT", "input", "drop"),
        hook("FORWARD", "forward", "drop"),
        family="ip",
    )
    words = [barrier.advice(each, "virbr1", "") for each in barrier.barriers(listed)]
    assert words == [
        "ufw allow in on virbr1",
        "ufw route allow in on virbr1; ufw route allow out on virbr1",
    ]


@pytest.mark.parametrize(
    ("last", "closes"),
    [
        ([COUNTED, {"drop": None}], True),
        ([{"log": {"prefix": "x"}}, {"reject": None}], True),
        ([COUNTED, {"xt": {"type": "target", "name": "REJECT"}}], True),
        ([{"limit": {"rate": 1, "per": "second"}}, {"drop": None}], False),
        ([{"xt": {"type": "match", "name": "limit"}}, {"drop": None}], False),
        ([device("eth0"), {"drop": None}], False),
        ([{"accept": None}], False),
    ],
)
def test_the_last_rule_decides(last: list[dict[str, Any]], *, closes: bool) -> None:
    listed = table("mine", hook("f", "forward", "accept"), rule("f", *last))
    found = barrier.barriers(listed)
    assert bool(found) == closes
    for each in found:
        assert (each.owner, each.title) == ("", "the chain f of the table inet mine")
        assert "virbr1" in barrier.advice(each, "virbr1", "")


def test_rules_that_speak_of_a_network() -> None:
    every = {"prefix": {"addr": "0.0.0.0", "len": 0}}
    wide = {"prefix": {"addr": "10.64.0.0", "len": 12}}
    for words, stops in (
        ([field("saddr", wide)], False),
        ([field("daddr", {"set": ["10.66.0.7", "1.2.3.4"]})], False),
        ([field("saddr", {"range": ["10.66.0.1", "10.66.0.9"]})], False),
        ([field("saddr", every)], True),
        ([field("saddr", "10.67.0.1")], True),
        ([field("saddr", "@known")], True),
    ):
        chains = hook("f", "forward", "drop"), rule("f", *words, {"accept": None})
        [found] = barrier.barriers(table("mine", *chains))
        assert found.stops("virbr1", [LAN]) == stops, words
    known = {"type": "ifname", "elem": ["virbr1", "eth0"]}
    [found] = barrier.barriers(table("mine", hook("f", "forward", "drop"), known))
    assert not found.stops("virbr1", [LAN])


def test_dhcp_may_be_let_in_by_its_port() -> None:
    chains = hook("i", "input", "drop"), hook("f", "forward", "drop")
    served = rule("i", field("dport", {"set": [53, 67]}), {"accept": None})
    found = {each.hook: each for each in barrier.barriers(table("mine", *chains, served))}
    assert not found[INPUT].stops("virbr1", [LAN])
    assert found[FORWARD].stops("virbr1", [LAN])


def test_only_chains_of_others_with_a_hook_count() -> None:
    listed = {
        "nftables": [
            {"chain": {"family": "inet", "table": "pyvz-networks", **hook("f", FORWARD, "accept")}},
            {"chain": {"family": "inet", "table": "theirs", **hook("o", "output", "drop")}},
            {"chain": {"family": "inet", "table": "theirs", "name": "plain"}},
            {"chain": {"family": "inet", "table": "other", **hook("f", FORWARD, "drop")}},
        ]
    }
    assert [each.name for each in barrier.hooked(listed, "pyvz")] == ["other"]
    assert barrier.hooked({}, "pyvz") == []
    assert barrier.barriers({}) == []


def test_names_with_a_star() -> None:
    some = Barrier(barrier.Table("inet", "t"), "f", FORWARD, devices=frozenset({"ven*", "br0"}))
    assert some.names("venet*")
    assert some.names("venet1")
    assert some.names("br0")
    assert not some.names("br01")
