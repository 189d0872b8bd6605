"""What a container may send, as nftables rules: values only.

netdev <instance>-<uuid>      one per container; a chain per interface on the node's end, hooked
                              where packets come in from the container, before anything of the
                              node sees them; a named set of addresses per family
inet   <instance>-addresses   one per node: a packet with the address of a routed container that
                              did not come in by that container's interface is dropped, whoever
                              sent it (the route back decides, fib(8))

What a card sends to everybody is limited, so that a flood does not reach every port of a bridge.

A bridged container with a filter for addresses also may not answer ARP or NDP for anybody else,
announce itself as router, or answer DHCP requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import NamedTuple

from pyvz.linux.nftables import ACCEPT, DROP, Command, Table, field, match, raw
from pyvz.network.address import family
from pyvz.network.base import Filter, Interface, NetworkPlan

_BEFORE_ALL = -500
_RAW = -310  # before connection tracking (-200) knows of a packet that we drop

_NOBODY = "0.0.0.0"  # noqa: S104  # the sender in an ARP probe, and in DHCP
_SOLICIT = "nd-neighbor-solicit"
_ADVERT = "nd-neighbor-advert"
_LISTENER = ["mld-listener-report", "mld-listener-done", "mld2-listener-report"]
_ROUTER = ["nd-router-advert", "nd-redirect"]
_DHCP_SERVER, _DHCP6_SERVER = 67, 547


def table(instance: str, uuid: str) -> Table:
    """Return the table of one container."""
    return Table("netdev", f"{instance}-{uuid}")


def guard(instance: str) -> Table:
    """Return the table of the node."""
    return Table("inet", f"{instance}-addresses")


class Ground(NamedTuple):
    """What is known of the kernel's tables.  A batch that rests on it fails where it is not so.

    fresh: the container has none.  guarded: the node's is there and right.  The kernel takes 10 ms
    and more for a batch that deletes (it waits for what earlier ones have deleted), else 1 ms.
    """

    fresh: bool = False
    guarded: bool = False


NOTHING_KNOWN = Ground()


def install(instance: str, plan: NetworkPlan, ground: Ground = NOTHING_KNOWN) -> list[Command]:
    """Return the batch that puts exactly the rules of PLAN in force for its container."""
    own = table(instance, plan.uuid)
    batch = [] if ground.fresh else own.drop()
    filtered = [each for each in plan.interfaces if each.filter.mac or each.filter.addresses]
    if filtered:
        batch.append(own.create() if ground.fresh else own.add())
    for each in filtered:
        batch += _chain(own, each)
    return batch + _routed(instance, plan.routed, ground)


def change(
    instance: str, old: NetworkPlan, new: NetworkPlan, ground: Ground = NOTHING_KNOWN
) -> list[Command]:
    """Return the batch that brings the rules of OLD to those of NEW.

    Addresses that come or go cost the same however many there are.
    """
    had, has = dict.fromkeys(old.routed), dict.fromkeys(new.routed)
    gone = [each for each in had if each not in has]
    batch = _without(instance, gone, ground)
    if old.torn or _bare(old) != _bare(new):
        return batch + install(instance, new, ground._replace(fresh=False))
    own = table(instance, new.uuid)
    for before, after in zip(old.interfaces, new.interfaces, strict=True):
        batch += _set_change(own, after, _sent(before), _sent(after))
    return batch + _routed(instance, [each for each in has if each not in had], ground)


def remove(instance: str, plan: NetworkPlan, *, last: bool) -> list[Command]:
    """Return the batch that takes the rules of PLAN away; last: nobody else on the node has any."""
    batch = table(instance, plan.uuid).drop()
    if last:
        return batch + guard(instance).drop()
    return batch + _without(instance, plan.routed, NOTHING_KNOWN)


def _bare(plan: NetworkPlan) -> list[tuple[str, str, Filter, bool]]:
    """Everything that decides about the chains, but the addresses."""
    return [
        (
            each.host_name,
            each.mac,
            each.filter._replace(addresses=None),
            each.filter.addresses is not None,
        )
        for each in plan.interfaces
    ]


def _guard(instance: str) -> list[Command]:
    """The node's table as it must be: made, or made right."""
    own = guard(instance)
    back = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}
    return [
        own.add(),
        own.set("routed4", "ipv4_addr"),
        own.set("routed6", "ipv6_addr"),
        own.chain("guard", "prerouting", _RAW, policy="accept"),
        own.flush("guard"),
        own.rule("guard", match(field("ip", "saddr"), "@routed4"), match(back, right=False), DROP),
        own.rule("guard", match(field("ip6", "saddr"), "@routed6"), match(back, right=False), DROP),
    ]


def _routed(instance: str, addresses: Iterable[str], ground: Ground) -> list[Command]:
    listed = list(addresses)
    if not listed:
        return []
    made = [] if ground.guarded else _guard(instance)
    return made + _elements(guard(instance), "routed", listed)


def _without(instance: str, addresses: Iterable[str], ground: Ground) -> list[Command]:
    listed = list(addresses)
    if not listed:
        return []
    batch = [] if ground.guarded else _guard(instance)
    for version in ("4", "6"):
        batch += guard(instance).without(f"routed{version}", _of(version, listed))
    return batch


def _elements(own: Table, name: str, addresses: Iterable[str]) -> list[Command]:
    listed = list(addresses)
    return [
        *own.elements(f"{name}4", _of("4", listed)),
        *own.elements(f"{name}6", _of("6", listed)),
    ]


def _set_change(
    own: Table, interface: Interface, had: tuple[str, ...], has: tuple[str, ...]
) -> list[Command]:
    name = interface.host_name
    batch: list[Command] = []
    before, after = dict.fromkeys(had), dict.fromkeys(has)
    gone = [each for each in before if each not in after]
    for version in ("4", "6"):
        batch += own.without(f"{name}-{version}", _of(version, gone))
    fresh = [each for each in after if each not in before]
    batch += _elements(own, f"{name}-", fresh)
    if not _has_neighbours(interface):
        return batch
    if _of("6", gone):
        return batch + _targets(own, name, has)
    return batch + [own.first(f"{name}-nd", *_spoken_for(each)) for each in _of("6", fresh)]


def _of(version: str, addresses: Iterable[str]) -> list[str]:
    return [each for each in addresses if family(each) == version]


def _sent(interface: Interface) -> tuple[str, ...]:
    """The addresses that may be the source: its own, and its card's link-local one."""
    if interface.filter.addresses is None:
        return ()
    return (*interface.filter.addresses, link_local(interface.mac))


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address that the kernel makes of a MAC (EUI-64, RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def _chain(own: Table, interface: Interface) -> list[Command]:
    name = interface.host_name
    batch = [own.chain(name, "ingress", _BEFORE_ALL, dev=name, policy="accept")]
    if interface.filter.mac:
        batch.append(own.rule(name, match(field("ether", "saddr"), interface.mac, "!="), DROP))
        batch.append(own.rule(name, match(field("arp", "saddr ether"), interface.mac, "!="), DROP))
    if interface.filter.broadcasts:
        batch.append(own.rule(name, *_flood(interface.filter.broadcasts)))
    if interface.filter.addresses is None:
        return batch
    batch += [own.set(f"{name}-4", "ipv4_addr"), own.set(f"{name}-6", "ipv6_addr")]
    batch += _elements(own, f"{name}-", _sent(interface))
    if _has_neighbours(interface):
        batch += [own.plain_chain(f"{name}-nd"), *_targets(own, name, _sent(interface))]
    batch += [own.rule(name, *rule) for rule in _rules(interface)]
    return batch


def _flood(rate: int) -> tuple[Command, ...]:
    """What is sent to everybody beyond RATE packets per second: every port of a bridge gets it."""
    everybody = match({"meta": {"key": "pkttype"}}, {"set": ["broadcast", "multicast"]})
    beyond = {"limit": {"rate": rate, "burst": rate, "per": "second", "inv": True}}
    return everybody, beyond, DROP


def _has_neighbours(interface: Interface) -> bool:
    """Whether anybody asks for its hardware address; on a routed pair nobody does (routed.py)."""
    return interface.kind != "routed" or interface.tap


def _targets(own: Table, name: str, addresses: Iterable[str]) -> list[Command]:
    """Fill the chain for advertisements: it drops what speaks for an address of somebody else.

    One rule for each address, so that one more costs the same however many there are.
    """
    chain = f"{name}-nd"
    passing = [own.rule(chain, *_spoken_for(each)) for each in _of("6", addresses)]
    return [own.flush(chain), *passing, own.rule(chain, DROP)]


def _spoken_for(address: str) -> tuple[Command, Command]:
    """Return the rule by which an advertisement for ADDRESS passes the chain.

    The target is compared as a number: nft 1.0 has no name for it that could be looked up in a set.
    """
    number = f"0x{int(IPv6Address(address)):032x}"
    return match(raw("th", 64, 128), number), {"return": None}


def _rules(interface: Interface) -> Iterable[tuple[Command, ...]]:
    """What passes an interface whose addresses are filtered, in order; the rest is dropped."""
    name = interface.host_name
    four, six = f"@{name}-4", f"@{name}-6"
    kind = field("icmpv6", "type")
    yield match(field("udp", "sport"), {"set": [_DHCP_SERVER, _DHCP6_SERVER]}), DROP
    yield match(field("ip", "saddr"), four), ACCEPT
    yield match(field("arp", "saddr ip"), four), ACCEPT
    # Probes: they tell nobody anything (RFC 5227).
    yield (
        match(field("arp", "saddr ip"), _NOBODY),
        match(field("arp", "operation"), "request"),
        ACCEPT,
    )
    yield match(kind, {"set": _ROUTER}), DROP
    # An advertisement tells where its *target* is, whoever is its sender (RFC 4861, 4.4).
    judged = {"jump": {"target": f"{name}-nd"}} if _has_neighbours(interface) else DROP
    yield match(kind, _ADVERT), judged
    yield match(field("ip6", "saddr"), six), ACCEPT
    yield match(field("ip6", "saddr"), "::"), match(kind, {"set": [_SOLICIT, *_LISTENER]}), ACCEPT
    yield (DROP,)
