"""Virtual networks: add, look at, change, delete; up at the start of vzd; looked after.

The file of a network (store/networks.py) says what shall be; `_apply` brings the node there, step
by step, each of which may be repeated.  So whoever dies in between is followed by the next start of
vzd, which brings every network up and takes away what belongs to none.  A change holds the node's
lock of networks.

`Bridged` and `Host-Only` are there without a file: they come up when a container first uses them.
"""

from __future__ import annotations

import logging
import uuid as uuids
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pyvz.errors import (
    AlreadyExists,
    BadValue,
    ConfigError,
    InvalidState,
    NetworkError,
    NotFound,
    Unsupported,
    VZError,
)
from pyvz.linux import nftables
from pyvz.linux.netlink import Netlink
from pyvz.model import event
from pyvz.model.virtualnet import (
    NetworkType,
    Subnet,
    VirtualNetwork,
    check,
    configured,
    overlapping,
)
from pyvz.network import dhcp, nat, virtualnet
from pyvz.network.base import card_mac, host_name_of
from pyvz.network.bridges import Bridges, check_unused
from pyvz.network.forwarding import forward
from pyvz.network.virtualnet import Ground
from pyvz.operations import nodefirewall, portforward
from pyvz.operations.node import Node
from pyvz.store.networks import BRIDGED, Networks

log = logging.getLogger(__name__)

Settings = Sequence[tuple[str, str]]

# What cannot change while somebody is plugged in: the bridge, and what is at its other end.
_STRUCTURE = ("type", "bridge", "interface", "mac", "vlan", "vxlan", "force")
_SUBNETS = [f"10.37.{third}.1/24" for third in range(130, 256)]  # the original begins at 130


class NetworkState(NamedTuple):
    """A network as it is now.

    bound: name of its card, or the hardware address when there is no such card.  slaves: the
    node's ends of the interfaces in it, of running and stopped containers.  problem: why it cannot
    be used, or "".
    """

    network: VirtualNetwork
    bound: str = ""
    slaves: tuple[str, ...] = ()
    up: bool = False
    problem: str = ""


def states(node: Node, names: Sequence[str] | None = None) -> list[NetworkState]:
    """Return the networks in NAMES, or all by name, also those that cannot be used; NotFound."""
    store, ground = Networks(node.paths), _ground()
    found = {each.name: each for each in _every(store, ground)}
    problems = dict(store.problems())
    for name in names or ():
        if name not in found and name not in problems:
            raise NotFound(f"The Virtual Network {name} does not exist.")
    slaves = _slaves(node)
    listed = [_state(each, ground, slaves) for each in found.values()]
    for name, problem in problems.items():
        listed.append(
            NetworkState(VirtualNetwork(name, "", NetworkType.HOST_ONLY), problem=problem)
        )
    wanted = [each for each in listed if names is None or each.network.name in names]
    return sorted(wanted, key=lambda each: each.network.name)


def ensure(node: Node, names: Collection[str]) -> None:
    """Let those of NAMES that are virtual networks be up; the first use makes the built-in ones.

    Cheap when they are.  Raises NetworkError and what else _apply raises.
    """
    store = Networks(node.paths)
    wanted = set(names)
    for network in store.stored() if wanted else ():
        if network.name in wanted and not _is_up(node, network):
            with store.locked():
                _apply(node, network)
                apply_rules(node)
    if not wanted.isdisjoint(store.without_file()):
        _ensure_builtin(node, store, wanted)


def add(node: Node, name: str, settings: Settings, *, uuid: str = "") -> VirtualNetwork:
    """Make a network and bring it up; raises AlreadyExists, BadValue, NetworkError, Unsupported.

    Nothing is left of it then.
    """
    store = Networks(node.paths)
    given = {key for key, _ in settings}
    bound = not given.isdisjoint({"ifname", "mac", "bridge"}) and "vxlan" not in given
    type_ = NetworkType.BRIDGED if bound else NetworkType.HOST_ONLY
    blank = VirtualNetwork(name, uuid or str(uuids.uuid4()), type_)
    with store.locked(), ExitStack() as undo:
        if store.path(name).exists() and _readable(store, name):
            raise AlreadyExists(f"The Virtual Network {name} exists already")
        if name in store.without_file():
            raise AlreadyExists(
                f"The Virtual Network {name} exists already", hint="Use net set to change it."
            )
        ground = _ground()
        network = configured(blank, settings)
        if network.type is NetworkType.SHARED and not given & {"dhcp-server", "dhcp6-server"}:
            network = network._replace(ipv4=network.ipv4._replace(dhcp=True))
        network = _ready(store, _with_subnet(network, store, ground), ground)
        undo.callback(store.remove, name)
        store.save(network)
        undo.callback(_take_down, node, network)
        _apply(node, network)
        undo.callback(apply_rules, node)
        apply_rules(node)
        undo.pop_all()
    node.tell(event.NET_ADD, name=name, uuid=network.uuid)
    return network


def change(node: Node, name: str, settings: Settings) -> VirtualNetwork:
    """Change a network, up or not; raises NotFound, NetworkInUse, and what add raises.

    It is as before then.
    """
    store = Networks(node.paths)
    with store.locked(), ExitStack() as undo:
        ground = _ground()
        old = _known(store, name, ground)
        new = configured(old, settings)
        structural = any(getattr(old, key) != getattr(new, key) for key in _STRUCTURE)
        if structural:
            check_unused(name, _users(node, old))
            undo.callback(_put_back, node, old)
            _take_down(node, old)
            ground = _ground()
            new = _unbound(old, new)
        new = _ready(store, _with_subnet(new, store, ground), ground)
        undo.callback(_written_back, store, old, exists=store.path(name).exists())
        store.save(new)
        undo.callback(_put_back, node, old)
        _apply(node, new, None if structural else old)
        apply_rules(node)
        undo.pop_all()
    node.tell(event.NET_SET, name=name, uuid=new.uuid)
    return new


def delete(node: Node, name: str) -> None:
    """Take a network down and forget it; raises NotFound, NetworkInUse."""
    store = Networks(node.paths)
    with store.locked():
        network = _known(store, name, _ground())
        check_unused(name, _users(node, network))
        _take_down(node, network)
        dhcp.Server(node.paths, network.uuid).forget()
        store.remove(name)
        apply_rules(node)
    node.tell(event.NET_DELETE, name=name, uuid=network.uuid)


def bring_up(node: Node) -> list[tuple[str, str]]:
    """At the start of vzd: every network with a file is up, and nothing else of ours is there.

    Returns (network, what is wrong) of those that could not be brought up; never raises for one
    of them.  On a node that has never had a network nothing is done, nor looked at.
    """
    places = (node.paths.etc, node.paths.run, node.paths.lib)
    if not any((place / "networks").is_dir() for place in places):
        return []
    store = Networks(node.paths)
    failed = store.problems()
    with store.locked():
        networks = store.stored()
        known = {each.uuid for each in networks}
        for uuid, bridge in Bridges(node.paths).leftovers(known):
            Bridges(node.paths).down(uuid, bridge)
        if not failed:  # else nobody knows whose they are
            for uuid in dhcp.orphans(node.paths, known):
                dhcp.Server(node.paths, uuid).forget()
        for network in [each for each in networks if each.autostart or _is_up(node, each)]:
            try:
                _apply(node, network)
            except (VZError, OSError) as error:
                failed.append((network.name, str(error)))
        apply_rules(node)
    for name, problem in failed:
        log.error("the network %s is not up: %s", name, problem)
    return failed


class Keeper:
    """Looks after the networks that are up, whenever it is called."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._forwards: dict[str, object] = {}

    def look(self) -> None:
        """Start DHCP servers that have died; renew rules whose targets have other addresses."""
        node, store = self._node, Networks(self._node.paths)
        networks = [each for each in store.stored() if each.bridge and not each.adopted]
        dead = [each for each in networks if _unserved(node, each) and _is_up(node, each)]
        forwards: dict[str, object] = {
            each.name: (portforward.redirections(node, each), _ports_of(each))
            for each in networks
            if each.forwards
        }
        if not dead and forwards == self._forwards:
            return
        with store.locked():
            for network in dead:
                if network in store.stored() and _is_up(node, network):
                    log.warning("the DHCP server of the network %s is started", network.name)
                    _serve(node, network)
            if forwards != self._forwards:
                apply_rules(node)
        self._forwards = forwards


def rules(node: Node) -> list[nftables.Command]:
    """Return the batch of all networks, as the node is now."""
    sides = [
        nat.Side(
            each.type,
            each.bridge,
            tuple(subnet.address for subnet in each.subnets),
            portforward.redirections(node, each),
        )
        for each in Networks(node.paths).stored()
        if each.bridge and not each.adopted
    ]
    return nat.rules(node.paths.instance, sides)


def apply_rules(node: Node) -> None:
    """Put the rules of all networks in force, in one batch."""
    nftables.apply(rules(node))
    for network in Networks(node.paths).stored():
        if network.forwards and network.bridge:
            Bridges(node.paths).reflect(network.bridge)
    nodefirewall.admit(node)


# -- steps --------------------------------------------------------------------------------------


def _apply(node: Node, network: VirtualNetwork, old: VirtualNetwork | None = None) -> None:
    """Bring the node to what NETWORK says; every step may be repeated."""
    (node.paths.run / "networks").mkdir(mode=0o755, parents=True, exist_ok=True)
    ground = _ground()
    before = virtualnet.shape(old, ground) if old is not None and old.bridge else None
    Bridges(node.paths).up(virtualnet.shape(network, ground), before)
    if network.type is NetworkType.SHARED:
        forward(network.subnets, [link.name for link in ground.links])
    _serve(node, network)


def _serve(node: Node, network: VirtualNetwork) -> None:
    server = dhcp.Server(node.paths, network.uuid)
    if _served(network):
        mtu = virtualnet.shape(network, _ground()).mtu
        server.ensure(dhcp.config(network, server.files, mtu=mtu))
    else:
        server.stop()


def _served(network: VirtualNetwork) -> bool:
    """Whether it has a dnsmasq: for DHCP, and for the names of the world."""
    return network.dhcp or (network.type is NetworkType.SHARED and dhcp.available())


def _unserved(node: Node, network: VirtualNetwork) -> bool:
    return _served(network) and not dhcp.Server(node.paths, network.uuid).running()


def _take_down(node: Node, network: VirtualNetwork) -> None:
    dhcp.Server(node.paths, network.uuid).stop()
    if network.bridge:
        Bridges(node.paths).down(network.uuid, network.bridge, adopted=network.adopted)


def _put_back(node: Node, network: VirtualNetwork) -> None:
    """Undo a change: as good as it goes; the next start of vzd tries again."""
    try:
        if network.bridge and Networks(node.paths).path(network.name).exists():
            _take_down(node, network)
            _apply(node, network)
            apply_rules(node)
    except (VZError, OSError):
        log.exception("the network %s could not be put back", network.name)


def _written_back(store: Networks, old: VirtualNetwork, *, exists: bool) -> None:
    if exists:
        store.save(old)
    else:
        store.path(old.name).unlink(missing_ok=True)


def _ready(store: Networks, network: VirtualNetwork, ground: Ground) -> VirtualNetwork:
    """Return the network as it can be: checked against the node and the other networks."""
    others = [each for each in store.stored() if each.name != network.name]
    network = check(network, ranges=True)
    _check_dhcp(network)
    _check_card(network, others, ground)
    taken = {each.bridge for each in others}
    network = virtualnet.chosen(network, ground, taken)
    nets = virtualnet.nets(ground, [network.bridge])
    nets |= {s.address: f"the network {each.name}" for each in others for s in each.subnets}
    problem = overlapping(network, nets)
    if problem:
        raise BadValue(problem)
    portforward.check(network, others)
    return network


def _check_dhcp(network: VirtualNetwork) -> None:
    if network.dhcp and not dhcp.available():
        raise Unsupported(
            "The program dnsmasq is not installed, so the node has no DHCP server",
            hint=f"Install the package {dhcp.PACKAGE}, or use --dhcp-server off.",
        )


def _check_card(network: VirtualNetwork, others: Iterable[VirtualNetwork], ground: Ground) -> None:
    """One bridged network per card and VLAN, as the original has it."""
    if network.type is not NetworkType.BRIDGED:
        return
    bound = virtualnet.card(network, ground)
    for each in others:
        if each.type is not NetworkType.BRIDGED or each.vlan != network.vlan or not bound:
            continue
        if bound in {each.interface, each.bridge} or (each.mac and each.mac == network.mac):
            raise NetworkError(
                "you cannot bind more than one bridged network to the same interface",
                details=f"{bound} is the interface of the network {each.name}.",
            )


def _unbound(old: VirtualNetwork, new: VirtualNetwork) -> VirtualNetwork:
    """Return a network that is bound anew: its bridge is chosen again unless it was named."""
    if new.bridge != old.bridge:
        return new._replace(adopted=False)
    if new.type is not NetworkType.BRIDGED and old.type is not NetworkType.BRIDGED:
        return new
    return new._replace(bridge="", adopted=False)


def _with_subnet(network: VirtualNetwork, store: Networks, ground: Ground) -> VirtualNetwork:
    """Return the network with an address of the node, when it needs one and has none."""
    if network.type is NetworkType.BRIDGED or network.subnets or network.vxlan:
        return network
    nets = virtualnet.nets(ground, ()) | {
        subnet.address: each.name for each in store.stored() for subnet in each.subnets
    }
    for address in _SUBNETS:
        made = network._replace(ipv4=network.ipv4._replace(address=address))
        if not overlapping(made, nets):
            return made
    raise NetworkError("There is no free subnet left", hint="Give one with --ip.")


# -- built-in networks --------------------------------------------------------------------------


def _every(store: Networks, ground: Ground) -> list[VirtualNetwork]:
    made = store.stored()
    for name in store.without_file():
        made.append(_builtin(store, name, ground))
    return made


def _builtin(store: Networks, name: str, ground: Ground) -> VirtualNetwork:
    """Return one of the two networks of every node, as it would be."""
    uuid = store.identity(name)
    if name == BRIDGED:
        with Netlink() as netlink:
            bound = virtualnet.default_card(ground, netlink.route_link("192.0.2.1"))
        network = VirtualNetwork(name, uuid, NetworkType.BRIDGED, interface=bound)
        try:
            return virtualnet.chosen(network, ground, ()) if bound else network
        except NetworkError:
            return network
    network = VirtualNetwork(name, uuid, NetworkType.HOST_ONLY, ipv4=Subnet(dhcp=dhcp.available()))
    return check(_with_subnet(network, store, ground))


def _ensure_builtin(node: Node, store: Networks, wanted: Collection[str]) -> None:
    with store.locked():
        for name in store.without_file():
            if name in wanted:
                ground = _ground()
                network = _builtin(store, name, ground)
                if network.type is NetworkType.BRIDGED and not network.interface:
                    raise NetworkError(
                        f"The node has no card for the network {name}",
                        hint=f"prlsrvctl net set {name} --ifname IF",
                    )
                network = _ready(store, network, ground)
                store.save(network)
                _apply(node, network)
                apply_rules(node)


def _known(store: Networks, name: str, ground: Ground) -> VirtualNetwork:
    if name in store.without_file():
        network = _builtin(store, name, ground)
        return network._replace(bridge="") if not network.adopted else network
    return store.get(name)


# -- looking ------------------------------------------------------------------------------------


def _ground() -> Ground:
    with Netlink() as netlink:
        return Ground(tuple(netlink.links()), tuple(netlink.addresses()))


def _readable(store: Networks, name: str) -> bool:
    try:
        store.get(name)
    except NotFound:
        return False
    except ConfigError as error:
        raise InvalidState(
            f"The file of the Virtual Network {name} is damaged", details=error.message
        ) from error
    return True


def _is_up(node: Node, network: VirtualNetwork) -> bool:
    if not network.bridge:
        return False
    with Netlink() as netlink:
        found = netlink.link(network.bridge)
    if found is None or network.adopted:
        return network.adopted
    return found.up and found.alias == virtualnet.alias(node.paths.instance, network.uuid)


def _ports_of(network: VirtualNetwork) -> tuple[int, ...]:
    """Return the indexes of the ports of a network's bridge."""
    return tuple(link.index for link in virtualnet.slaves(_ground(), network.bridge))


def _state(network: VirtualNetwork, ground: Ground, slaves: dict[str, list[str]]) -> NetworkState:
    problem = ""
    try:
        bound = virtualnet.card(network, ground)
    except NetworkError as error:
        bound, problem = network.interface or network.mac, error.message
    ports = [*slaves.get(network.name, ()), *slaves.get(network.bridge, ())]
    found = ground.link(network.bridge) if network.bridge else None
    up = found is not None and found.up
    return NetworkState(network, bound, tuple(dict.fromkeys(ports)), up, problem)


def _slaves(node: Node) -> dict[str, list[str]]:
    """Return network -> the node's ends of the interfaces in it."""
    found: dict[str, list[str]] = {}
    for env, config, _ in node.registry.snapshot():
        for each in config.network.interfaces:
            if each.network:
                mac = each.mac or card_mac(env.uuid, each.ifname)
                found.setdefault(each.network, []).append(each.host_ifname or host_name_of(mac))
    return found


def _users(node: Node, network: VirtualNetwork) -> list[str]:
    """Return who is plugged in, or will be when it starts."""
    found = [
        f"{env.name} ({each.ifname})"
        for env, config, _ in node.registry.snapshot()
        for each in config.network.interfaces
        if each.network == network.name
    ]
    if found or network.adopted or not network.bridge:
        return found
    return Bridges(node.paths).in_use(network.uuid, network.bridge)
