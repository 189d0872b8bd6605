"""IP private networks, as nftables rules: who may speak with whom, by address; values only.

inet   <instance>-privnet   what the node routes
bridge <instance>-privnet   what its bridges pass on

An address belongs to a private network when it is in one of its nets.  Two addresses of one network
speak; else an address of a regular network speaks with nobody, one of a weak network ("*") with
everybody who is not in a regular one.  A global network is a range whose addresses belong to
private networks in any case: one that is in no particular network speaks with nobody.
What the node itself sends and gets is not affected (the original filters in FORWARD, too).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any, NamedTuple

from pyvz.linux.nftables import ACCEPT, DROP, Command, Table, field, match

_BEFORE_FILTER = -10

AnyNetwork = IPv4Network | IPv6Network


class PrivateNetwork(NamedTuple):
    """One private network.  nets: "10.1.0.0/24", ...  weak: see above."""

    name: str
    nets: tuple[str, ...] = ()
    weak: bool = False
    is_global: bool = False


def tables(instance: str) -> tuple[Table, Table]:
    """Return the two tables of the node."""
    return Table("inet", f"{instance}-privnet"), Table("bridge", f"{instance}-privnet")


def rules(instance: str, networks: Sequence[PrivateNetwork]) -> list[Command]:
    """Return the batch that puts exactly the rules of NETWORKS in force."""
    batch = [command for own in tables(instance) for command in own.drop()]
    bodies = [rule for version in (4, 6) for rule in _rules(networks, version)]
    if not bodies:
        return batch
    for own in tables(instance):
        batch += [own.add(), own.chain("forward", "forward", _BEFORE_FILTER, policy="accept")]
        batch += [own.rule("forward", *rule) for rule in bodies]
    return batch


def _rules(networks: Sequence[PrivateNetwork], version: int) -> Iterable[tuple[Command, ...]]:
    family = "ip" if version == 4 else "ip6"
    source, target = field(family, "saddr"), field(family, "daddr")
    particular = [each for each in networks if not each.is_global]
    if version == 6 and any(_set(each.nets, 6) for each in networks):
        # Neighbours find each other by the link's own multicast (RFC 4861).
        yield match(target, {"prefix": {"addr": "ff02::", "len": 16}}), ACCEPT
    for each in particular:
        own = _set(each.nets, version)
        if own:
            yield match(source, own), match(target, own), ACCEPT
    strong = _set((net for each in particular if not each.weak for net in each.nets), version)
    if strong:
        yield match(source, strong), DROP
        yield match(target, strong), DROP
    covered = _set((net for each in networks if each.is_global for net in each.nets), version)
    known = _set((net for each in particular for net in each.nets), version)
    if covered:
        for side in (source, target):
            rest = (match(side, known, "!="),) if known else ()
            yield match(side, covered), *rest, DROP


def _set(nets: Iterable[str], version: int) -> dict[str, Any]:
    """Return an anonymous set of nets, without overlaps (the kernel refuses those); {} for none."""
    parsed = [ip_network(net) for net in nets]
    four = [net for net in parsed if isinstance(net, IPv4Network)]
    six = [net for net in parsed if isinstance(net, IPv6Network)]
    merged: list[AnyNetwork] = [*collapse_addresses(four)] if version == 4 else []
    merged += [*collapse_addresses(six)] if version == 6 else []
    if not merged:
        return {}
    return {
        "set": [
            {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}} for net in merged
        ]
    }
