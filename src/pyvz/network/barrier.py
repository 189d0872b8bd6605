"""Chains of others that pass only what they have a rule for: what our containers send is dropped
there, whatever our own rules say (a packet must be accepted by every chain of its hook).

Read from what libnftables lists (libnftables-json(5)); values only.  firewalld, Docker and ufw are
known by the chains that they make, to tell the administrator what to do in their own words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

from pyvz.linux.nftables import Command, Table

FORWARD, INPUT = "forward", "input"
FAMILIES: Final = ("ip", "ip6", "inet")
FIREWALLD, DOCKER, UFW = "firewalld", "Docker", "ufw"

_PASSING: Final = "firewalld_policy_drop"  # a table that is there while firewalld is reloaded
_DHCP = 67  # the port of the server
_MARKS: Final = {
    "filter_FORWARD_ZONES": FIREWALLD,
    "FORWARD_ZONES": FIREWALLD,  # FirewallBackend=iptables
    "DOCKER-USER": DOCKER,
    "ufw-user-forward": UFW,
    "ufw6-user-forward": UFW,
}
_DEVICES: Final = ("iifname", "oifname", "iif", "oif")
_NO_VERDICT: Final = frozenset({"counter", "log"})

Net = IPv4Network | IPv6Network


class Barrier(NamedTuple):
    """A chain of somebody else with a hook, and what the rules of its table speak of.

    hook: FORWARD or INPUT.  owner: FIREWALLD, DOCKER, UFW or "".  devices: names of interfaces, or
    beginnings of names ("venet*").  nets: addresses.  serves: DHCP requests are spoken of.
    handle: of the table; another one when it was made anew.
    """

    table: Table
    chain: str
    hook: str
    owner: str = ""
    devices: frozenset[str] = frozenset()
    nets: tuple[Net, ...] = ()
    serves: bool = False
    handle: int = 0

    def names(self, device: str) -> bool:
        """Whether there is a rule for an interface (or a beginning of names, "venet*")."""
        return any(device.startswith(each[:-1]) for each in self.devices if each.endswith("*")) or (
            device in self.devices
        )

    def stops(self, device: str, nets: Iterable[Net] = ()) -> bool:
        """Whether nothing here speaks of DEVICE, nor of any address in NETS."""
        served = self.hook == INPUT and self.serves and self.owner != FIREWALLD
        if self.names(device) or served:
            return False
        return not any(
            ours.version == theirs.version and theirs.prefixlen and ours.overlaps(theirs)
            for ours in nets
            for theirs in self.nets
        )

    @property
    def title(self) -> str:
        """How it is called in a message."""
        where = f"the chain {self.chain} of the table {self.table.family} {self.table.name}"
        return f"{self.owner} ({where})" if self.owner else where


def hooked(listing: dict[str, Any], instance: str) -> list[Table]:
    """Return the tables of others in a list of chains that see what is forwarded or comes in."""
    return list(
        dict.fromkeys(
            Table(each["family"], each["table"])
            for each in _objects(listing, "chain")
            if each.get("hook") in {FORWARD, INPUT}
            and each.get("type") == "filter"
            and not each["table"].startswith(f"{instance}-")
            and each["table"] != _PASSING
        )
    )


def barriers(listing: dict[str, Any]) -> list[Barrier]:
    """Return those of a table's chains that end in a drop: by policy, or by their last rule."""
    chains, rules = _objects(listing, "chain"), _objects(listing, "rule")
    handle = next((int(each["handle"]) for each in _objects(listing, "table")), 0)
    owner = next((_MARKS[each["name"]] for each in chains if each["name"] in _MARKS), "")
    words = list(_words(rules, _objects(listing, "set")))
    devices = frozenset(word for kind, word in words if kind == "device")
    nets = tuple(net for kind, word in words if kind == "address" for net in _net(word))
    return [
        Barrier(
            Table(each["family"], each["table"]), each["name"], each["hook"], owner, devices, nets,
            serves=("port", str(_DHCP)) in words, handle=handle,
        )
        for each in chains
        if each.get("hook") in {FORWARD, INPUT} and _closes(each, rules)
    ]  # fmt: skip


def advice(barrier: Barrier, device: str, zone: str) -> str:
    """Return what lets DEVICE through, in the words of whose chain it is.

    zone: that of firewalld for interfaces of ours.
    """
    pattern = device.replace("*", "+")  # of iptables
    if barrier.owner == FIREWALLD:
        return f"firewall-cmd --zone={zone} --change-interface={pattern}"
    if barrier.owner == DOCKER:
        return "; ".join(
            f"{_iptables(barrier)} -I DOCKER-USER {way} {pattern} -j ACCEPT" for way in ("-i", "-o")
        )
    if barrier.owner == UFW and barrier.hook == INPUT:
        return f"ufw allow in on {pattern}"
    if barrier.owner == UFW:
        return f"ufw route allow in on {pattern}; ufw route allow out on {pattern}"
    side = "from" if barrier.hook == INPUT else "from and to"
    return f"let that chain accept what comes {side} {device}"


def _iptables(barrier: Barrier) -> str:
    return "ip6tables" if barrier.table.family == "ip6" else "iptables"


def _objects(listing: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each[kind] for each in listing.get("nftables", ()) if kind in each]


def _closes(chain: dict[str, Any], rules: Sequence[dict[str, Any]]) -> bool:
    if chain.get("policy") == "drop":
        return True
    own = [each for each in rules if each["chain"] == chain["name"]]
    last = own[-1].get("expr", ()) if own else ()
    verdicts = [each for each in last if _NO_VERDICT.isdisjoint(each)]
    return len(verdicts) == 1 and (
        not {"drop", "reject"}.isdisjoint(verdicts[0])
        or verdicts[0].get("xt") == {"type": "target", "name": "REJECT"}  # of iptables-nft
    )


def _words(
    rules: Iterable[dict[str, Any]], sets: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Give what rules compare with: ("device" | "address" | "port", text)."""
    for rule in rules:
        for each in rule.get("expr", ()):
            found: Command = each.get("match", {}) if isinstance(each, dict) else {}
            kind = _kind(found.get("left"))
            if kind:
                yield from ((kind, text) for text in _texts(found.get("right")))
    for each in sets:
        kind = {"ifname": "device", "ipv4_addr": "address", "ipv6_addr": "address"}.get(
            str(each.get("type")), ""
        )
        if kind:
            yield from ((kind, text) for text in _texts(each.get("elem")))


def _kind(left: Any) -> str:  # noqa: ANN401
    if not isinstance(left, dict):
        return ""
    if left.get("meta", {}).get("key") in _DEVICES:
        return "device"
    name = left.get("payload", {}).get("field", "")
    return {"saddr": "address", "daddr": "address", "dport": "port"}.get(name, "")


def _texts(right: Any) -> Iterator[str]:  # noqa: ANN401
    """Give the single values of the right side of a match, whatever they are wrapped in."""
    if isinstance(right, str | int):
        yield str(right)
    elif isinstance(right, list):
        for each in right:
            yield from _texts(each)
    elif isinstance(right, dict) and "prefix" in right:
        yield f"{right['prefix']['addr']}/{right['prefix']['len']}"
    elif isinstance(right, dict):
        for each in right.values():
            yield from _texts(each)


def _net(text: str) -> list[Net]:
    try:
        return [ip_network(text, strict=False)]
    except ValueError:
        return []
