"""What passes between virtual networks and the world, as nftables rules: values only.

inet <instance>-networks    one table per node, made anew as a whole with every change

forward      a host-only network reaches nobody but the node; into a shared one come only answers
             and forwarded ports
postrouting  what leaves a shared network bears the node's address; so does what a container sends
             to a forwarded port of its own network (hairpin: the answer must come back by us)
prerouting,  forwarded ports, for every address of the node, also for connections of the node
output       itself (not for 127.0.0.1: such packets never leave the loopback interface)

A drop in a chain of somebody else (firewalld, Docker's FORWARD policy) still drops: rules of others
are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface
from typing import NamedTuple

from pyvz.linux.nftables import ACCEPT, DROP, Command, Table, field, match, meta
from pyvz.model.virtualnet import NetworkType

_DSTNAT, _FILTER, _SRCNAT = -100, 0, 100  # NF_IP_PRI_*, include/uapi/linux/netfilter_ipv4.h
_BEFORE_DSTNAT = -110  # so that of two redirections of one port ours is the one that counts

_MASQUERADE: Command = {"masquerade": None}
_LOCAL = match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
_ANSWER = match({"ct": {"key": "state"}}, {"set": ["established", "related"]})
_FORWARDED = match({"ct": {"key": "status"}}, "dnat", "in")


class Redirection(NamedTuple):
    """A port of the node that leads to an address."""

    protocol: str
    port: int
    address: str
    target_port: int


class Side(NamedTuple):
    """One network as the rules see it.  addresses: of the node, with their nets."""

    type: NetworkType
    bridge: str
    addresses: tuple[str, ...] = ()
    redirections: tuple[Redirection, ...] = ()


def table(instance: str) -> Table:
    """Return the table of the node."""
    return Table("inet", f"{instance}-networks")


def rules(instance: str, sides: Sequence[Side]) -> list[Command]:
    """Return the batch that puts exactly the rules of SIDES in force."""
    own = table(instance)
    batch = own.drop()
    closed = [each for each in sides if each.type is not NetworkType.BRIDGED]
    if not closed:
        return batch
    batch += [own.add(), own.chain("forward", "forward", _FILTER, policy="accept")]
    for side in closed:
        batch += [own.rule("forward", *rule) for rule in _forward(side)]
    shared = [each for each in closed if each.type is NetworkType.SHARED]
    if shared:
        batch.append(own.chain("postrouting", "postrouting", _SRCNAT, type="nat", policy="accept"))
    for side in shared:
        batch += [own.rule("postrouting", *rule) for rule in _masquerade(side)]
    return batch + _redirections(own, shared)


def _forward(side: Side) -> Iterable[tuple[Command, ...]]:
    """The same bridge twice: br_netfilter shows us what a bridge forwards by itself, too."""
    inward = match(meta("iifname"), side.bridge)
    not_inward = match(meta("iifname"), side.bridge, "!=")
    outward = match(meta("oifname"), side.bridge)
    if side.type is NetworkType.HOST_ONLY:
        yield inward, match(meta("oifname"), side.bridge, "!="), DROP
        yield outward, not_inward, DROP
        return
    yield outward, not_inward, _ANSWER, ACCEPT
    yield outward, not_inward, _FORWARDED, ACCEPT
    yield outward, not_inward, DROP


def _masquerade(side: Side) -> Iterable[tuple[Command, ...]]:
    for address in side.addresses:
        net = ip_interface(address).network
        family = "ip" if net.version == 4 else "ip6"
        prefix = {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
        inside = match(field(family, "saddr"), prefix)
        yield inside, match(meta("oifname"), side.bridge, "!="), _MASQUERADE
        yield inside, match(meta("oifname"), side.bridge), _FORWARDED, _MASQUERADE


def _redirections(own: Table, sides: Sequence[Side]) -> list[Command]:
    batch: list[Command] = []
    wanted = [each for side in sides for each in side.redirections]
    if not wanted:
        return batch
    for chain, hook in (("prerouting", "prerouting"), ("output", "output")):
        priority = _BEFORE_DSTNAT if hook == "prerouting" else _DSTNAT
        batch.append(own.chain(chain, hook, priority, type="nat", policy="accept"))
        batch += [own.rule(chain, *_redirect(each, hook)) for each in wanted]
    return batch


def _redirect(each: Redirection, hook: str) -> tuple[Command, ...]:
    version = ip_address(each.address).version
    family = "ip" if version == 4 else "ip6"
    matches = [
        match(meta("nfproto"), "ipv4" if version == 4 else "ipv6"),
        match(field(each.protocol, "dport"), each.port),
        _LOCAL,
    ]
    if hook == "output":
        loopback = {"addr": "127.0.0.0", "len": 8} if version == 4 else {"addr": "::1", "len": 128}
        matches.insert(1, match(field(family, "daddr"), {"prefix": loopback}, "!="))
    target = {"family": family, "addr": each.address, "port": each.target_port}
    return *matches, {"dnat": target}
