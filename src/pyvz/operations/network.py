"""The network of containers: checked and reserved first, put down when a container starts or
changes, and taken away when it has stopped.

What is to be is a NetworkPlan (network/plan.py); this module gathers what the plan must know of
the node, and hands it to network/links.py.  The caller holds the environment's lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pyvz.container.runtime import NetworkAccess
from pyvz.errors import AddressInUse, NetworkError, NotRunning, VZError
from pyvz.linux import arp
from pyvz.linux.addressprobe import Late, Probe, Question
from pyvz.linux.netlink import sysctl
from pyvz.linux.rtnetlink import Requests
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.param import normal
from pyvz.network import facts, netdev, plan
from pyvz.network.address import Reservations, family
from pyvz.network.base import Interface, NetworkPlan, NodeFacts
from pyvz.network.ends import check_free
from pyvz.network.links import Between, Inside, Links
from pyvz.operations import netdevice, options, traffic, virtualnet
from pyvz.operations.node import Node
from pyvz.operations.options import GivenOptions, Plan
from pyvz.store.networks import Networks

log = logging.getLogger(__name__)

FIELDS = frozenset({"network.ip", "network.external_ip", "network.interfaces", "network.devices"})
AUTO = "auto"
RANGE_KEY = "VE_ADDRESS_RANGE"  # of vz.conf: where --ipadd auto takes addresses from
PROBE_PATIENCE = 0.25  # seconds for an answer from the wire; the original waits 1
# On a wire an answer takes less than one millisecond, and a start asks before it does anything
# else.  An answer that comes later is told in the log.
START_PATIENCE = 0.03


class Asked(NamedTuple):
    """A start that has begun: its plan, and the questions that are under way."""

    plan: NetworkPlan
    probe: Probe


def ask(node: Node, env: Environment, config: Config, *, plugged: bool = True) -> Asked:
    """Plan and reserve what a container wants, and ask the wire who has its addresses.

    Answers come while the caller does other things; prepare() reads them.  Nothing is there yet,
    and a bridge that is missing may still be made (by an action script).  Raises AddressInUse,
    NetworkError, BadValue.
    """
    made = NetworkPlan(env.uuid)
    if plan.wanted(config):
        made = _plan(node, env, config)
    reserve(node, env, config)
    # One that arrives from another node still has its addresses there: nobody is asked.
    return Asked(made, Probe(questions(node, made) if plugged else (), late(env)))


def prepare(
    node: Node,
    env: Environment,
    config: Config,
    *,
    plugged: bool = True,
    asked: Asked | None = None,
) -> Callable[[NetworkAccess], None] | None:
    """Check, and return what furnishes a container's namespace; asked: by ask(), before.

    None: it has no interfaces.  Raises AddressInUse, NetworkError, BadValue; nothing is there
    then.  What the returned function leaves when it fails, clean() takes away.  plugged: False
    leaves the node's ends leading nowhere, until plug().
    """
    wanted, probe = asked or ask(node, env, config, plugged=plugged)
    if wanted.empty:
        return None
    _check_possible(node, wanted)

    def ready() -> None:
        refuse_taken(probe, START_PATIENCE)
        if plugged:
            announce(wanted, None, "6")

    def furnish(access: NetworkAccess) -> None:
        between = Between(traffic.with_rules(node, env, config, wanted), ready)
        inside = Inside(access.namespace, access.netlink)
        Links(node.paths).apply(wanted, inside, between, plugged=plugged)
        if plugged:
            announce(wanted, None, "4")
        _warn(env, wanted)

    return furnish


def furnish(
    node: Node, env: Environment, config: Config, access: NetworkAccess, *, plugged: bool = False
) -> None:
    """Build a container's interfaces in a namespace that somebody else has made (a restore).

    As `prepare` and what it returns; by default the node's ends lead nowhere until plug().
    """
    found = prepare(node, env, config, plugged=plugged)
    if found is not None:
        found(access)


def plug(node: Node, uuid: str) -> None:
    """Let a container's (or virtual machine's) interfaces lead to the world, and tell the world.

    Idempotent; what has no interfaces is left alone.
    """
    links = Links(node.paths)
    found = links.applied(uuid)
    if found is None:
        return
    announce(found, None, "6")
    announce(links.plug(uuid), None, "4")


def unplug(node: Node, uuid: str) -> None:
    """Cut a container or virtual machine off: nothing comes in or goes out until plug().

    Inside nothing changes: links stay up, with their addresses.  Idempotent.
    """
    Links(node.paths).unplug(uuid)


def planned(node: Node, env: Environment, config: Config) -> NetworkPlan:
    """Return the plan that CONFIG means on this node now; nothing is changed.

    Raises AddressInUse, NetworkError, BadValue for what cannot be.
    """
    if not plan.wanted(config):
        return NetworkPlan(env.uuid)
    made = _plan(node, env, config)
    _check_possible(node, made)
    return made


def _plan(node: Node, env: Environment, config: Config) -> NetworkPlan:
    """The plan; what is asked of the kernel does not grow with the number of containers."""
    wanted = {each.network for each in plan.netifs(config) if each.network}
    virtualnet.ensure(node, wanted)
    known_networks, asking = networks(node), Requests()
    addresses = asking.addresses()
    bridges = {known_networks.get(name, name) for name in wanted}
    links = asking.links(bridges, {each.index for each in addresses})
    known = facts.facts(node.config(), list(links.values()), addresses, known_networks)
    return plan.plan(env.uuid, config, known, taps=env.kind == Kind.VM)


def _check_possible(node: Node, made: NetworkPlan) -> None:
    """Raise NetworkError when a bridge is missing, or a name taken by somebody else."""
    asking = Requests()
    names = {name for each in made.interfaces for name in (each.bridge, each.host_name) if name}
    present = Links(node.paths).applied(made.uuid)
    check_free(made, present, asking.links(names))
    cards = asking.links(made.devices)
    for name in made.devices:
        if present is None or name not in present.devices:
            netdev.check(name, cards.get(name), node.paths.instance)


def networks(node: Node) -> dict[str, str]:
    """Return the bridge of every virtual network of the node, by the network's name."""
    return {each.name: each.bridge for each in Networks(node.paths).stored() if each.bridge}


def check(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> NetworkPlan:
    """Reserve the addresses of NEW for a container that does not run, as `set` begins.

    Returns the plan.  Raises AddressInUse, NetworkError, BadValue; undone by UNDO.
    """
    wanted = planned(node, env, new)
    undo.callback(reserve, node, env, old)
    reserve(node, env, new)
    before = set(plan.reserved(old))
    fresh = [each for each in questions(node, wanted) if each.address not in before]
    refuse_taken(Probe(fresh, late(env)), PROBE_PATIENCE)
    return wanted


def change(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Bring a running container's network from OLD to NEW; undone by UNDO."""
    after = check(node, env, old, new, undo)
    links = Links(node.paths)
    before = links.applied(env.uuid) or NetworkPlan(env.uuid)
    if before == after:
        return
    undo.callback(_change_back, node, env, after, before)
    announce(after, before, "6")
    with node.runtime.network(env.uuid) as access:
        inside = Inside(access.namespace, access.netlink)
        then = traffic.following(node, env, (before, old), (after, new))
        links.change(before, after, inside, then)
    announce(after, before, "4")
    _warn(env, after)


def clean(node: Node, uuid: str) -> None:
    """Take away what a container that does not run has on the node; idempotent.

    Its addresses stay reserved.
    """
    traffic.clean(node, uuid)
    Links(node.paths).remove(uuid)


def release(node: Node, uuid: str) -> None:
    """Forget a container that is deleted or goes elsewhere."""
    clean(node, uuid)
    Reservations(node.paths).release(uuid)
    traffic.forget(node, uuid)


def recover(node: Node) -> None:
    """Take away what containers that are gone have left, and what they had reserved."""
    known = {env.uuid for env in node.registry.environments()}
    running = node.runtime.running()
    for uuid in Links(node.paths).leftovers():
        if uuid not in known and uuid not in running:
            clean(node, uuid)
    for uuid in set(Reservations(node.paths).all().values()) - known:
        Reservations(node.paths).release(uuid)
    for env in node.registry.environments():
        found = Links(node.paths).applied(env.uuid) if env.uuid in running else None
        if found is not None and found.torn:
            _mend(node, env)


def _mend(node: Node, env: Environment) -> None:
    """Bring a running container to what its configuration says, after a `set` that was killed."""
    try:
        with node.lease(env, "recovery"), ExitStack() as undo:
            config = node.registry.config(env)
            change(node, env, config, config, undo)
            undo.pop_all()
            log.warning("%s: its network is as its configuration says again", env.name)
    except (VZError, OSError):
        log.exception("%s: its network is not as its configuration says", env.name)


def with_addresses(
    node: Node, given: Iterable[tuple[str, str | None]]
) -> list[tuple[str, str | None]]:
    """Return the options with every `--ipadd auto` replaced by a free address of the node.

    Raises NotEnoughResources, or NetworkError when the node has no range.
    """
    made: list[tuple[str, str | None]] = []
    taken: set[str] = set()
    for name, text in given:
        if normal(name) not in {"ipadd", "ipset"} or text != AUTO:
            made.append((name, text))
            continue
        ranges = node.config().values.get(RANGE_KEY, "").split()
        if not ranges:
            raise NetworkError(
                "The node has no range of addresses for 'auto'",
                hint=f"Set {RANGE_KEY} in vz.conf, like 10.0.0.10-10.0.0.99.",
            )
        taken = taken or {*_own(node).addresses}
        address = Reservations(node.paths).allocate(ranges, taken)
        taken.add(address)
        made.append((name, address))
    return made


def plan_options(
    node: Node, env: Environment, config: Config, dialect: str, given: GivenOptions
) -> Plan:
    """Return what the options of `set` mean, those about interfaces included (options.py).

    Raises UsageError, BadValue, NotFound, Unsupported; also for a hardware address that another
    container has.
    """
    nics = netdevice.take(config, dialect, with_addresses(node, given))
    made = options.plan(nics.config, dialect, nics.rest, env.kind)
    if not nics.fields:
        return made
    taken = {*nics.worn} | {
        each.mac
        for other, theirs, _ in node.registry.snapshot()
        if other.uuid != env.uuid
        for each in theirs.network.interfaces
    }
    taken.discard("")
    return made._replace(
        config=netdevice.with_macs(made.config, env.uuid, taken, machine=env.kind == Kind.VM),
        fields=(*nics.fields, *made.fields),
        echo=(*nics.echo, *made.echo),
    )


def _own(node: Node) -> NodeFacts:
    asking = Requests()
    addresses = asking.addresses()
    links = asking.links(indexes={each.index for each in addresses})
    return facts.facts(node.config(), list(links.values()), addresses, {})


def reserve(node: Node, env: Environment, config: Config) -> None:
    """Let the addresses of CONFIG be this environment's; AddressInUse names another owner."""
    try:
        Reservations(node.paths).set(env.uuid, plan.reserved(config))
    except AddressInUse as error:
        for other in node.registry.environments():
            error.message = error.message.replace(other.uuid, other.name)
        raise


def _change_back(node: Node, env: Environment, new: NetworkPlan, old: NetworkPlan) -> None:
    try:
        with node.runtime.network(env.uuid) as access:
            Links(node.paths).change(new, old, Inside(access.namespace, access.netlink))
        traffic.apply(node, env, node.registry.config(env))
    except NotRunning:
        pass  # it has ended meanwhile, and everything of it
    except (VZError, OSError):
        log.exception("%s: its old network could not be put back", env.name)


def questions(node: Node, made: NetworkPlan) -> list[Question]:
    """Return where each address of a plan is to be looked for, before it is used.

    None with SKIP_ARPDETECT: then the wire is left alone.
    """
    if node.config().values.get("SKIP_ARPDETECT", "no").lower() == "yes":
        return []
    cards = [
        Question(address.partition("/")[0], each.bridge)
        for each in made.interfaces
        if each.bridge and each.connected
        for address in each.addresses
    ]
    return [*(Question(*each) for each in made.proxies), *cards]


def refuse_taken(probe: Probe, patience: float) -> None:
    """Raise AddressInUse when somebody answers within PATIENCE seconds of the question."""
    for asked, mac in probe.answers(patience).items():
        raise AddressInUse(
            f"The address {asked.address} is in use on the network by {mac} (seen on "
            f"{asked.device})",
            hint="SKIP_ARPDETECT=yes in vz.conf switches this check off.",
        )


def late(env: Environment) -> Late:
    """Return what tells the log of an answer for which nobody has waited."""

    def tell(asked: Question, mac: str) -> None:
        log.warning(
            "%s: its address %s is in use on the network by %s, too (seen on %s)",
            env.name, asked.address, mac, asked.device,
        )  # fmt: skip

    return tell


def announce(made: NetworkPlan, before: NetworkPlan | None, version: str) -> None:
    """Tell neighbours where the addresses of a plan are now; before: what they know already.

    version: "4" is told when the addresses are there.  "6" before they are: the kernel of a
    container that hears somebody else speak for its address complains of it.
    """
    known = set(before.proxies) if before else set()
    for address, device in made.proxies:
        if (address, device) not in known and family(address) == version:
            with suppress(OSError):  # the device is gone, or down: nobody is there to tell
                arp.announce(device, [address])
    fresh = [_fresh(x, before.interface(x.name) if before else None) for x in made.interfaces]
    _announce_cards(fresh, version)


def _fresh(each: Interface, former: Interface | None) -> Interface:
    """Return the interface with those addresses only that neighbours do not know to be there."""
    if former is None or (former.bridge, former.connected, former.mac) != (
        each.bridge, each.connected, each.mac,
    ):  # fmt: skip
        return each
    known = set(former.addresses)
    return each._replace(addresses=tuple(x for x in each.addresses if x not in known))


def _announce_cards(interfaces: Iterable[Interface], version: str) -> None:
    for each in interfaces:
        told = [x.partition("/")[0] for x in each.addresses if family(x) == version]
        if each.bridge and each.connected and told:
            with suppress(OSError):
                arp.announce(each.bridge, told, each.mac)


def _warn(env: Environment, made: NetworkPlan) -> None:
    """Tell the log when the node does not forward, so that nobody outside is reached."""
    families = {family(address) for address in made.routed}
    for version, key in (("4", "net/ipv4/ip_forward"), ("6", "net/ipv6/conf/all/forwarding")):
        if version in families and sysctl(key) == "0":
            log.warning(
                "%s: the node does not forward IPv%s, so only the node and its other containers "
                "are reached (sysctl %s=1)", env.name, version, key.replace("/", "."),
            )  # fmt: skip
