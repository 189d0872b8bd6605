"""The network cards of a virtual machine: taps on the node, plugged in as a container's cards are.

The same virtual networks, anti-spoofing, filters, counters and rates; what is inside (addresses,
routes) is the guest's own matter.  The caller holds the machine's lease.

    probe = vmcard.ask(node, env, config)       who has its addresses? not for one that arrives
    cards = vmcard.make(node, env, config)      before QEMU starts; -netdev tap,fd=N for each
    network.refuse_taken(probe, PATIENCE)       when QEMU has the descriptors
    network.plug(node, env.uuid)
    vmcard.change(node, env, old, new, undo)    `set` while it runs
    network.clean(node, env.uuid)               when QEMU has ended, or the start has failed
    network.check(node, env, old, new, undo)    `set` while it does not run
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from pyvz.linux.addressprobe import Probe
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.network.base import NetworkPlan
from pyvz.network.links import Between, Links
from pyvz.operations import network, traffic
from pyvz.operations.node import Node


class Card(NamedTuple):
    """A card: its name in NETIF and the MAC that QEMU shall give it; the tap and its descriptor.

    fd: the caller's to close (QEMU has a copy of its own).
    """

    name: str
    mac: str
    tap: str
    fd: int


class Change(NamedTuple):
    """What `set` has done: new cards are to be plugged into the guest, gone ones pulled before.

    links: (name, connected) of cards whose cable was plugged in or pulled out (QMP set_link).
    """

    added: tuple[Card, ...] = ()
    gone: tuple[str, ...] = ()
    links: tuple[tuple[str, bool], ...] = ()


def ask(node: Node, env: Environment, config: Config) -> Probe:
    """Ask the wire who has the addresses of a machine that is about to start; as network.ask()."""
    return network.ask(node, env, config).probe


def make(
    node: Node, env: Environment, config: Config, *, plugged: bool = False
) -> tuple[Card, ...]:
    """Check, reserve, and make a tap for each card; they lead nowhere until network.plug().

    Raises AddressInUse, NetworkError, BadValue, Unsupported; clean() takes away what is left.
    """
    wanted = network.planned(node, env, config)
    network.reserve(node, env, config)
    put = traffic.with_rules(node, env, config, wanted)
    taps = Links(node.paths).apply(wanted, None, Between(put), plugged=plugged)
    return _cards(wanted, taps)


def change(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> Change:
    """Bring a running machine's cards from OLD to NEW; undone by UNDO (but in QEMU).

    Cards whose hardware address or name on the node changes are gone and added.
    """
    after = network.check(node, env, old, new, undo)
    links = Links(node.paths)
    before = links.applied(env.uuid) or NetworkPlan(env.uuid)
    if before == after:
        return Change()
    undo.callback(links.change, after, before, None)
    network.announce(after, before, "6")
    then = traffic.following(node, env, (before, old), (after, new))
    taps = links.change(before, after, None, then)
    network.announce(after, before, "4")
    added = _cards(after, taps)
    replaced = {card.name for card in added}
    left = {each.name for each in after.interfaces}
    gone = [x.name for x in before.interfaces if x.name not in left or x.name in replaced]
    return Change(added, tuple(gone), tuple(_switched(before, after)))


def _cards(plan: NetworkPlan, taps: dict[str, int]) -> tuple[Card, ...]:
    return tuple(
        Card(each.name, each.mac, each.host_name, taps[each.host_name])
        for each in plan.interfaces
        if each.host_name in taps
    )


def _switched(before: NetworkPlan, after: NetworkPlan) -> Iterable[tuple[str, bool]]:
    for each in after.interfaces:
        former = before.interface(each.name)
        if former is not None and former.connected != each.connected:
            yield each.name, each.connected
