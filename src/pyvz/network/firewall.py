"""The filter of an interface as nftables rules: values only.

A packet is judged where it passes the node's end of the interface (chains of netdev, ingress and
egress), so it does not matter whether the interface is routed or bridged, who the other end is,
and what the container does inside.  Connection tracking is not there at these hooks; what answers
an accepted packet is known by two sets of our own, whose elements expire:

    <host>-flows<4|6>   container . other . protocol . port . other's port   (tcp, udp)
    <host>-pairs<4|6>   container . other . protocol                         (the rest)

ARP, neighbour discovery and errors of ICMP always pass: without them no connection works.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyvz.linux.nftables import DROP, Command, Table, field, match, meta
from pyvz.model.grammar_firewall import ANY, Firewall, FirewallRule, Side

_FLOW_LIFE = 300  # seconds without a packet; nf_conntrack has 120 for UDP, days for TCP
_PAIR_LIFE = 60
_SIZE = 65536  # flows of one interface; when it is full, packets are judged by the rules alone
_RETURN: Command = {"return": None}
_ERRORS = ["destination-unreachable", "time-exceeded", "parameter-problem"]
_NEIGHBOURS = ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit", "nd-router-advert"]
_LISTENERS = ["mld-listener-query", "mld-listener-report", "mld-listener-done"]
_ERRORS6 = [*_ERRORS, "packet-too-big", *_NEIGHBOURS, *_LISTENERS, "mld2-listener-report"]
_DHCP = {"in": (67, 68), "out": (68, 67)}  # ports from and to
_DHCP6 = {"in": (547, 546), "out": (546, 547)}


def install(table: Table, host: str, firewall: Firewall) -> list[Command]:
    """Return the batch that makes the chains <host>-fw-in and <host>-fw-out, to be jumped to."""
    batch: list[Command] = []
    for version in ("4", "6"):
        kind = f"ipv{version}_addr"
        ports = ["inet_service", "inet_service"]
        for name, types, life in (
            (f"{host}-flows{version}", [kind, kind, "inet_proto", *ports], _FLOW_LIFE),
            (f"{host}-pairs{version}", [kind, kind, "inet_proto"], _PAIR_LIFE),
        ):
            batch.append(_add_set(table, name, types, life))
    ok = {direction: f"{host}-ok-{direction}" for direction in ("in", "out")}
    for direction in ("in", "out"):
        batch.append(table.plain_chain(ok[direction]))
        batch += [table.rule(ok[direction], *rule) for rule in _remember(host, direction)]
    for direction, side in (("in", firewall.incoming), ("out", firewall.outgoing)):
        chain = f"{host}-fw-{direction}"
        batch.append(table.plain_chain(chain))
        rules = [*_always(direction), *_known(host, direction, ok[direction])]
        rules += list(_judged(side, direction, ok[direction]))
        batch += [table.rule(chain, *rule) for rule in rules]
    return batch


def _always(direction: str) -> Iterator[tuple[Command, ...]]:
    yield match(meta("protocol"), {"set": ["ip", "ip6"]}, "!="), _RETURN
    yield match(field("icmp", "type"), {"set": _ERRORS}), _RETURN
    yield match(field("icmpv6", "type"), {"set": _ERRORS6}), _RETURN
    # Only the first fragment has ports; the others are worth nothing without it.
    offset = {"&": [field("ip", "frag-off"), 0x1FFF]}
    yield match(offset, 0, "!="), _RETURN
    yield match({"exthdr": {"name": "frag", "field": "frag-off"}}, 0, "!="), _RETURN
    for sport, dport in (_DHCP[direction], _DHCP6[direction]):
        yield match(field("udp", "sport"), sport), match(field("udp", "dport"), dport), _RETURN


def _key(version: str, direction: str, *, ports: bool) -> Command:
    """The flow that a packet belongs to, the container's side first."""
    protocol = "ip" if version == "4" else "ip6"
    own, other = ("daddr", "saddr") if direction == "in" else ("saddr", "daddr")
    parts: list[Any] = [field(protocol, own), field(protocol, other), meta("l4proto")]
    if ports:
        own, other = ("dport", "sport") if direction == "in" else ("sport", "dport")
        parts += [field("th", own), field("th", other)]
    return {"concat": parts}


def _sets(host: str, direction: str) -> Iterator[tuple[Command, Command, str]]:
    """(which packets, their key, their set) of each of the four sets."""
    for ports in (True, False):
        proto = match(meta("l4proto"), {"set": ["tcp", "udp"]}, "==" if ports else "!=")
        for version in ("4", "6"):
            name = f"@{host}-{'flows' if ports else 'pairs'}{version}"
            yield proto, _key(version, direction, ports=ports), name


def _known(host: str, direction: str, ok: str) -> Iterator[tuple[Command, ...]]:
    for which, key, name in _sets(host, direction):
        yield which, match(key, name), {"goto": {"target": ok}}


def _remember(host: str, direction: str) -> Iterator[tuple[Command, ...]]:
    for which, key, name in _sets(host, direction):
        yield which, {"set": {"op": "update", "elem": key, "set": name}}


def _judged(side: Side, direction: str, ok: str) -> Iterator[tuple[Command, ...]]:
    """The rules, each the opposite of the policy, then the policy."""
    passing: Command = {"goto": {"target": ok}}
    verdict, rest = (passing, DROP) if side.policy == "deny" else (DROP, passing)
    for rule in side.rules:
        for expressions in _expressions(rule, direction):
            yield (*expressions, verdict)
    yield (rest,)


def _expressions(rule: FirewallRule, direction: str) -> Iterator[list[Command]]:
    """The matches of one rule, for each IP version that it speaks of."""
    given = "".join(x for x in (rule.local, rule.remote) if x != ANY)
    versions = ("6",) if ":" in given else ("4",) if given else ("4", "6")
    if rule.protocol != "icmp" and not given:
        versions = ("",)
    for version in versions:
        yield [*_addresses(rule, direction, version), *_protocol(rule, direction, version)]


def _addresses(rule: FirewallRule, direction: str, version: str) -> Iterator[Command]:
    own, other = ("daddr", "saddr") if direction == "in" else ("saddr", "daddr")
    protocol = "ip6" if version == "6" else "ip"
    for name, network in ((own, rule.local), (other, rule.remote)):
        if network != ANY:
            address, slash, length = network.partition("/")
            prefix = {"prefix": {"addr": address, "len": int(length)}} if slash else address
            yield match(field(protocol, name), prefix)


def _protocol(rule: FirewallRule, direction: str, version: str) -> Iterator[Command]:
    if rule.protocol == "icmp":
        yield match(meta("l4proto"), "ipv6-icmp" if version == "6" else "icmp")
        if not any(x != ANY for x in (rule.local, rule.remote)):
            yield match(meta("protocol"), "ip6" if version == "6" else "ip")
    elif rule.protocol != ANY:
        yield match(meta("l4proto"), rule.protocol)
    own, other = ("dport", "sport") if direction == "in" else ("sport", "dport")
    for name, ports in ((own, rule.local_port), (other, rule.remote_port)):
        if ports != ANY:
            first, dash, last = ports.partition("-")
            value = {"range": [int(first), int(last)]} if dash else int(first)
            yield match(field("th", name), value)


def _add_set(table: Table, name: str, kinds: list[str], life: int) -> Command:
    # nft sets the flag `dynamic` itself, by the rules of the same batch; older ones refuse it here.
    made = table.set(name, kinds)
    made["add"]["set"] |= {"flags": ["timeout"], "timeout": life, "size": _SIZE}
    return made
