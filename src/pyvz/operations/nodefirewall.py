"""Firewalls of others on this node (firewalld, Docker, ufw, rules written by hand).

Their rules are theirs: nothing of them is changed.  firewalld has zones for what others bring
along, so interfaces of ours go into one (FIREWALLD_ZONE of vz.conf), unless its administrator has
given them another; what was put there is written down in <run>/firewalld.json, and taken out when
it is gone.  Where a chain would drop what a network needs, and nothing can be done by us, it is
told: in the log, and by `prlsrvctl net info`.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Final, NamedTuple

import pyvz
from pyvz.errors import NotFound, Unsupported, VZError
from pyvz.linux import firewalld, nftables
from pyvz.linux.file import flock, write_atomic
from pyvz.linux.netlink import sysctl
from pyvz.model.environment import Kind
from pyvz.model.virtualnet import NetworkType
from pyvz.network import barrier
from pyvz.network.barrier import FORWARD, Barrier, Net
from pyvz.network.base import ROUTED_PREFIX, TAP_PREFIX
from pyvz.network.bridges import FILTERED_BRIDGES
from pyvz.operations.node import Node
from pyvz.store.networks import Networks

log = logging.getLogger(__name__)

ZONE_KEY: Final = "FIREWALLD_ZONE"  # of vz.conf; "none": firewalld is left alone
ZONE: Final = "pyvz"
_LOCK_TIMEOUT = 60.0  # seconds: somebody else may be asking firewalld
_EVERY: Final = frozenset(barrier.FAMILIES)
_ROUTED: Final = (f"{ROUTED_PREFIX}*", f"{TAP_PREFIX}*")  # ends of routed interfaces


class Way(NamedTuple):
    """An interface of the node by which packets of ours go.

    device: its name, or a beginning of names ("venet*").  what: it is, for people.  forward: the
    families of tables whose chains its packets pass when they are forwarded.  input: the node
    serves there.  ours: it may be put into a zone.
    """

    device: str
    what: str
    forward: frozenset[str] = frozenset()
    input: bool = False
    nets: tuple[Net, ...] = ()
    ours: bool = True

    def stopped(self, by: Barrier) -> bool:
        """Whether a chain drops what it needs."""
        passes = by.table.family in self.forward if by.hook == FORWARD else self.input
        return passes and by.stops(self.device, self.nets)


def admit(node: Node) -> None:
    """Put our interfaces into firewalld's zone, where it runs; never raises for it.

    Cheap where it does not.  Called when networks have changed.
    """
    try:
        _admit(node, _barriers(node))
    except (VZError, OSError) as error:
        log.warning("firewalld: %s", error)


def problems(node: Node) -> dict[str, str]:
    """Return device -> what a chain of others does to it, and how that is helped."""
    return _problems(node, _barriers(node))


class Watch:
    """Looks whenever rules of the node have changed; tells the log what is new."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[str, str] = {}
        self._vain: object = None  # the state in which firewalld has refused
        self.seconds = 0.0  # that the rules of others took to be listed

    def look(self) -> None:
        """Admit, and tell."""
        begun = time.monotonic()
        found = _barriers(self._node)
        self.seconds = time.monotonic() - begun
        state = [(each.handle, each.devices) for each in found if each.owner == barrier.FIREWALLD]
        if state != self._vain:
            try:
                _admit(self._node, found)
                self._vain = None
            except (VZError, OSError) as error:
                log.warning("firewalld: %s", error)
                self._vain = state
            found = _barriers(self._node) if state else found
        now = _problems(self._node, found)
        for device, text in now.items():
            if self._told.get(device) != text:
                log.warning("%s", text)
        self._told = now


# -- what there is ------------------------------------------------------------------------------


def _barriers(node: Node) -> list[Barrier]:
    """Return the chains of others that drop what they have no rule for."""
    found: list[Barrier] = []
    with suppress(Unsupported):  # no nftables, no chains
        for family in barrier.FAMILIES:
            for table in barrier.hooked(nftables.chains(family), node.paths.instance):
                found += barrier.barriers(nftables.listed(table))
    return found


def _ways(node: Node) -> list[Way]:
    routed = _routed(node)
    ways = [Way(each, "routed addresses", _EVERY) for each in sorted(routed)]
    ways += [Way(each, "routed addresses") for each in _ROUTED if each not in routed]
    bridged = _bridged()
    for network in Networks(node.paths).stored():
        if network.bridge and _exists(network.bridge):
            shared = network.type is NetworkType.SHARED
            nets = tuple(ip_interface(each.address).network for each in network.subnets)
            # With the addresses of its card a bridge is the node's own way out: not ours to open.
            ours = not network.adopted and not network.force
            what, forward = f"the network {network.name}", _EVERY if shared else bridged
            served = network.dhcp or shared
            ways.append(Way(network.bridge, what, forward, served, nets, ours))
    return ways


def _bridged() -> frozenset[str]:
    """Return the families of tables that see what a bridge forwards by itself (br_netfilter)."""
    own = [family for family, key in FILTERED_BRIDGES.items() if sysctl(key) == "1"]
    return frozenset([*own, "inet"] if own else ())


def _routed(node: Node) -> set[str]:
    """Return the ends of the routed interfaces that there are, or will be."""
    found = set()
    for env, config, _ in node.registry.snapshot():
        if env.kind != Kind.VM and (config.network.ip or config.network.external_ip):
            found.add(f"{ROUTED_PREFIX}*")
        for each in config.network.interfaces:
            if each.type == "routed":
                name = each.host_ifname or (TAP_PREFIX if env.kind == Kind.VM else ROUTED_PREFIX)
                found.add(next((x for x in _ROUTED if name.startswith(x[:-1])), name))
    return found


def _exists(device: str) -> bool:
    with suppress(OSError):
        return socket.if_nametoindex(device) > 0
    return False


def _problems(node: Node, found: list[Barrier]) -> dict[str, str]:
    if not found:
        return {}
    told: dict[str, str] = {}
    zone = _zone(node)
    for way in _ways(node):
        for each in found:
            if way.stopped(each):
                help_ = barrier.advice(each, way.device, zone or "ZONE")
                told.setdefault(
                    way.device,
                    f"{each.title} drops what no rule there speaks of, and none speaks of "
                    f"{way.device} ({way.what}): {help_}",
                )
    return told


# -- firewalld ----------------------------------------------------------------------------------


def _zone(node: Node) -> str:
    zone = node.config().values.get(ZONE_KEY, ZONE)
    return "" if zone == "none" else zone


def _admit(node: Node, found: list[Barrier]) -> None:
    """Bring the zone to what it shall have; raises NotFound, NetworkError, Unsupported, Timeout."""
    zone = _zone(node)
    theirs = [each for each in found if each.owner == barrier.FIREWALLD]
    if not theirs or not zone:
        return
    record = node.paths.run / "firewalld.json"
    node.paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    with flock(record.with_suffix(".lock"), timeout=_LOCK_TIMEOUT):
        wanted = {way.device for way in _ways(node) if way.ours}
        bound = _recorded(record)
        fresh = {device for device in wanted if not all(x.names(device) for x in theirs)}
        gone = {device for device in bound if device not in wanted}
        if not fresh and not gone:
            return
        write_atomic(record, json.dumps(sorted(bound | fresh)), durable=False)
        try:
            firewalld.bind(zone, [_pattern(each) for each in sorted(fresh)])
            firewalld.unbind(zone, [_pattern(each) for each in sorted(gone)])
        except NotFound as error:
            raise NotFound(error.message, hint=_installing(zone)) from error
        write_atomic(record, json.dumps(sorted((bound | fresh) - gone)), durable=False)


def _pattern(device: str) -> str:
    return device.replace("*", "+")


def _installing(zone: str) -> str:
    if zone != ZONE:
        return f"{ZONE_KEY} in vz.conf names it."
    files = Path(pyvz.__file__).parent / "data/firewalld"
    return f"cp -r {files}/. /etc/firewalld/ and firewall-cmd --reload make it."


def _recorded(record: Path) -> set[str]:
    try:
        found = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return set()
    return {str(each) for each in found} if isinstance(found, list) else set()
