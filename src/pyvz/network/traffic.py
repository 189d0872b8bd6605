"""One table of nftables per container: its filter, its counters and its classes, in this order.

    netdev <instance>-traffic-<uuid>
      <host>-out   ingress of the node's end: what the container sends.  After the rules against
                   spoofing, so what those drop is not counted; last it goes to the shaping device
      <host>-in    egress of the node's end: what the container receives

The table stays while the container runs, and its counters go on counting, when the rest is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyvz.linux.nftables import Command, Table, field
from pyvz.model.grammar_firewall import Firewall
from pyvz.network import accounting, firewall, shaping
from pyvz.network.classes import LAST, Span

_AFTER_ANTISPOOFING = 200
_TOKEN = "token-"  # noqa: S105  (begins the name of a counter that counts nothing)


class Watched(NamedTuple):
    """An interface of a container by its node's end, and its filter (None: everything passes)."""

    host: str
    firewall: Firewall | None = None


class Rules(NamedTuple):
    """What the table of one container is to say.

    token: name of the table's life (accounting.py).  spans: classes by IP version.
    limits: (guarantee, ceiling) of each shaped class.  slot: place in the tree of the node; 0: not
    shaped.  device: through which what it sends is shaped.
    """

    token: str
    interfaces: tuple[Watched, ...]
    spans: Mapping[int, tuple[Span, ...]]
    limits: Mapping[int, tuple[int, int]] = {}
    slot: int = 0
    device: str = ""


def table(instance: str, uuid: str) -> Table:
    """Return the table of one container."""
    return Table("netdev", f"{instance}-traffic-{uuid}")


class Present(NamedTuple):
    """What is in the table now.  token: "" when there is no table of ours."""

    token: str = ""
    counters: Mapping[str, tuple[int, int]] = {}
    chains: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()


NOTHING = Present()


def present(listed: Mapping[str, Any]) -> Present:
    """Return what nft's JSON says about a table."""
    token, counters = "", {}
    found: dict[str, list[str]] = {"chain": [], "set": []}
    for item in listed.get("nftables", []):
        for kind, entry in item.items():
            if kind in found:
                found[kind].append(str(entry["name"]))
            elif kind == "counter" and entry["name"].startswith(_TOKEN):
                token = str(entry["name"]).removeprefix(_TOKEN)
            elif kind == "counter":
                counters[str(entry["name"])] = (int(entry["packets"]), int(entry["bytes"]))
    return Present(token, counters, tuple(found["chain"]), tuple(found["set"]))


def install(own: Table, rules: Rules, now: Present, *, fresh: bool = False) -> list[Command]:
    """Return the batch that puts RULES in force; counters that are there go on.

    Everything else is made anew, so flows that the filter knew are forgotten: what the new rules
    do not allow ends at once.  now: what is in the table.  fresh: there is none, else it fails.
    """
    batch = [own.create() if fresh else own.add(), *(own.flush(name) for name in now.chains)]
    batch += [{"delete": {"chain": _named(own, name)}} for name in now.chains]
    batch += [{"delete": {"set": _named(own, name)}} for name in now.sets]
    batch.append(_counter(own, f"{_TOKEN}{rules.token}"))
    batch += [
        _counter(own, accounting.counter(direction, number, version))
        for direction in accounting.DIRECTIONS
        for version in (4, 6)
        for number in sorted({span.number for span in rules.spans[version]})
    ]
    for interface in rules.interfaces:
        batch += _interface(own, rules, interface)
    return batch


def _interface(own: Table, rules: Rules, interface: Watched) -> list[Command]:
    host, filtered = interface
    batch: list[Command] = []
    for direction, hook in (("out", "ingress"), ("in", "egress")):
        chain = f"{host}-{direction}"
        batch.append(own.chain(chain, hook, _AFTER_ANTISPOOFING, dev=host, policy="accept"))
    if filtered is not None and filtered.enabled:
        batch += firewall.install(own, host, filtered)
    for direction in accounting.DIRECTIONS:
        chain = f"{host}-{direction}"
        if filtered is not None and filtered.enabled:
            batch.append(own.rule(chain, {"jump": {"target": f"{host}-fw-{direction}"}}))
        batch += [own.rule(chain, expression) for expression in _counting(rules, direction)]
        batch += [own.rule(chain, expression) for expression in _shaping(rules, direction)]
    return batch


def _counting(rules: Rules, direction: str) -> list[Command]:
    batch: list[Command] = []
    for version in (4, 6):
        names = {n: accounting.counter(direction, n, version) for n in range(LAST + 1)}
        batch.append({"counter": _by_class(rules, direction, version, names)})
    return batch


def _shaping(rules: Rules, direction: str) -> list[Command]:
    if not rules.slot or not rules.limits:
        return []
    slot = rules.slot if direction == "out" else 1
    marks = {n: shaping.priority(slot, n, rules.limits) for n in range(LAST + 1)}
    # What is neither IPv4 nor IPv6 counts as the rest of the world.
    expressions: list[Command] = [_priority(marks[1])]
    expressions += [_priority(_by_class(rules, direction, version, marks)) for version in (4, 6)]
    if direction == "out":
        expressions.append({"fwd": {"dev": rules.device}})
    return expressions


def _priority(value: object) -> Command:
    return {"mangle": {"key": {"meta": {"key": "priority"}}, "value": value}}


def _by_class(rules: Rules, direction: str, version: int, words: Mapping[int, str]) -> Command:
    """Look WORDS up by the address of the other end."""
    key = field("ip" if version == 4 else "ip6", "daddr" if direction == "out" else "saddr")
    elements = [[_range(span), words[span.number]] for span in rules.spans[version]]
    return {"map": {"key": key, "data": {"set": elements}}}


def _range(span: Span) -> object:
    return span.first if span.first == span.last else {"range": [span.first, span.last]}


def _counter(own: Table, name: str) -> Command:
    return {"add": {"counter": _named(own, name)}}


def _named(own: Table, name: str) -> dict[str, str]:
    return {"family": own.family, "table": own.name, "name": name}
