"""The network cards of virtual machines, between QEMU and the taps that vmcard.py makes.

Cards are net0, net1, ... in their order among the interfaces; the number is the card's place on the
bus.  What is inside is the guest's: its template's first boot, DHCP, or people see to it.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress

from pyvz.errors import Unsupported, UsageError, VZError
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_net import NetIf
from pyvz.model.param import normal
from pyvz.operations import netdevice, netinfo, network, traffic, vmcard
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import NicSpec, boot_places

log = logging.getLogger(__name__)

MOST = 8  # cards: as many places as the command line has for them
_FIRST = frozenset(
    {"ipadd", "ipdel", "ipset", "gw", "gw6", "dhcp", "dhcp6", "mac", "network", "configure"}
    | {"ipfilter", "macfilter", "adapter-type"}
)
_OF_NETWORK = (*network.FIELDS, *traffic.FIELDS)
_NAMES = frozenset({"device-add", "device-set", "device-del"})


def names(config: Config) -> dict[str, str]:
    """Return {name of the interface: net0, net1, ...}."""
    cards = [nic for nic in config.network.interfaces if nic.ifname != "venet0"]
    return {nic.ifname: f"net{index}" for index, nic in enumerate(cards)}


def open_all(
    node: Node, env: Environment, config: Config, opened: ExitStack
) -> tuple[NicSpec, ...]:
    """Make the taps of a machine that starts; OPENED closes our descriptors of them.

    Raises AddressInUse, NetworkError, BadValue, Unsupported; clean() takes away what is left.
    """
    cards = vmcard.make(node, env, config)
    for card in cards:
        opened.callback(os.close, card.fd)
    return _specs(config, cards)


def _specs(config: Config, cards: tuple[vmcard.Card, ...]) -> tuple[NicSpec, ...]:
    numbered, places = names(config), boot_places(config)
    settings = {nic.ifname: nic for nic in config.network.interfaces}
    return tuple(
        NicSpec(
            name=numbered[card.name],
            mac=card.mac,
            tap=card.fd,
            model=_model(settings[card.name]),
            boot=places.get(numbered[card.name], 0),
            connected=settings[card.name].connected,
        )
        for card in cards
    )


def _model(nic: NetIf) -> str:
    return dict(nic.other).get(netinfo.MODEL, "virtio")


def connected(node: Node, env: Environment, config: Config, monitor: Monitor) -> None:
    """Let traffic through when QEMU holds the taps."""
    if not config.network.interfaces:
        return
    network.plug(node, env.uuid)
    numbered = names(config)
    for nic in config.network.interfaces:
        if not nic.connected:
            plug.set_link(monitor, numbered[nic.ifname], up=False)


def announce(config: Config, monitor: Monitor) -> None:
    """Have QEMU tell the network where the cards are now (as a switch learns it)."""
    if config.network.interfaces:
        rounds = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
        monitor.execute("announce-self", rounds)


def with_addresses(node: Node, config: Config, given: GivenOptions) -> GivenOptions:
    """Return the options as they are meant for a machine.

    Network options with no device named are about the first card (prlctl.md section 3), and
    `--ipadd auto` is a free address of the node.
    """
    made = network.with_addresses(node, given)
    named = any(normal(name) in _NAMES for name, _ in made)
    if named or not any(normal(name) in _FIRST for name, _ in made):
        return made
    if not netdevice.cards(config):
        raise UsageError(
            "There is no network card that the option could be about",
            hint="Add one: prlctl set ID --device-add net --network NAME",
        )
    return [("device-set", "net0"), *made]


def settled(node: Node, env: Environment, config: Config) -> Config:
    """Return CONFIG with hardware addresses and names on the node for cards that have none.

    Raises BadValue for an address that another environment has, Unsupported for too many cards.
    """
    if config.network.ip:
        raise Unsupported("The addresses of a virtual machine belong to its cards (net0, ...)")
    if len(config.network.interfaces) > MOST:
        raise Unsupported(f"A virtual machine has {MOST} network cards at most")
    if not config.network.interfaces:
        return config
    taken = {
        nic.mac
        for other, theirs, _ in node.registry.snapshot()
        if other.uuid != env.uuid
        for nic in theirs.network.interfaces
    } - {""}
    return netdevice.with_macs(config, env.uuid, taken, machine=True)


def check(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Reserve what NEW wants for a machine that does not run; raises AddressInUse, NetworkError."""
    if new.network.interfaces != old.network.interfaces:
        network.check(node, env, old, new, undo)


def change(
    node: Node,
    env: Environment,
    configs: tuple[Config, Config],
    monitor: Monitor,
    undo: ExitStack,
) -> None:
    """Bring the cards of a running machine from the old to the new of CONFIGS."""
    old, new = configs
    if all(old.get(field) == new.get(field) for field in _OF_NETWORK):
        return
    before, after = names(old), names(new)
    moved = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    if moved:
        raise UsageError(
            "Removing this card would renumber the others, which cannot be done while it runs",
            hint="Remove the last card, or stop the virtual machine first.",
        )
    # First those that go: a guest that keeps its card stops the rest.
    for name in before.keys() - after.keys():
        plug.remove_nic(monitor, before[name])
    with ExitStack() as opened:
        changed = vmcard.change(node, env, old, new, undo)
        for card in changed.added:
            opened.callback(os.close, card.fd)
        for name in changed.gone:
            if name in after:  # it is made anew
                plug.remove_nic(monitor, before[name])
        for spec in _specs(new, changed.added):
            plug.add_nic(monitor, spec._replace(boot=0), new.machine.chipset)
            undo.callback(_pull_quietly, monitor, spec.name)
        if changed.added:
            network.plug(node, env.uuid)
        for name, up in changed.links:
            plug.set_link(monitor, after[name], up=up)
            undo.callback(_link_quietly, monitor, after[name], up=not up)


def _pull_quietly(monitor: Monitor, name: str) -> None:
    try:
        plug.remove_nic(monitor, name)
    except VZError:
        log.exception("%s could not be pulled out again", name)


def _link_quietly(monitor: Monitor, name: str, *, up: bool) -> None:
    with suppress(VZError):
        plug.set_link(monitor, name, up=up)


def clean(node: Node, uuid: str) -> None:
    """Take away what a machine that does not run has on the node; idempotent."""
    network.clean(node, uuid)
