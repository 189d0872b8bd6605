"""Traffic of containers: shaped, counted and filtered; all of it on the node's side.

apply() is called when a container's links are there (start, change), clean() when they go.  What is
to be is a value (network/traffic.py, network/shaping.py); one batch of nftables per container puts
it in force.  A node that can neither filter nor count at the links (before Linux 5.16, or without
nft) starts containers all the same, unless a filter or a rate was asked for.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from pyvz.errors import BadValue, NetworkError, NotFound, Unsupported, VZError
from pyvz.linux import nftables
from pyvz.linux.file import write_atomic
from pyvz.linux.netlink import HtbRate, Netlink
from pyvz.linux.rtnetlink import Requests
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.network import accounting, classes, shaping
from pyvz.network import traffic as rules
from pyvz.network.accounting import Traffic
from pyvz.network.base import ROUTED, NetworkPlan
from pyvz.network.classes import TrafficClass
from pyvz.network.links import Links, Put
from pyvz.network.shaping import Policy
from pyvz.operations.node import Node
from pyvz.store import trafficslots

log = logging.getLogger(__name__)

FIELDS = frozenset({"network.rates", "network.rate_bound", "network.firewalls"})
_WORLD = "192.0.2.1"  # an address that no network near has (RFC 5737): by which way goes it?


class Shape(NamedTuple):
    """What a container's traffic is bound to: the node's policy, its own limits, the uplink."""

    policy: Policy
    limits: Mapping[int, tuple[int, int]]


def watched(plan: NetworkPlan, config: Config) -> tuple[rules.Watched, ...]:
    """Return the interfaces of a plan with their filters: what decides about the chains."""
    filters = {each.ifname: each for each in config.network.firewalls}
    return tuple(rules.Watched(x.host_name, filters.get(x.name)) for x in plan.interfaces)


def apply(node: Node, env: Environment, config: Config) -> None:
    """Shape, count and filter what passes a running container's links, as CONFIG says.

    Raises NetworkError and Unsupported when a filter or rate that was asked for cannot be.
    """
    plan = Links(node.paths).applied(env.uuid)
    if plan is None or not plan.interfaces:
        clean(node, env.uuid)
        return
    _put(node, env, config, plan)


def _put(node: Node, env: Environment, config: Config, plan: NetworkPlan) -> None:
    with _tolerant(env, config):
        own = rules.table(node.paths.instance, env.uuid)
        now = rules.present(nftables.listed(own))
        wanted, slot = _rules(node, env, config, plan, now)
        nftables.apply(rules.install(own, wanted, now))
        if not slot and _shapes(node):
            with Netlink() as netlink:
                _leave_tree(node, env.uuid, netlink)


def with_rules(node: Node, env: Environment, config: Config, plan: NetworkPlan) -> Put:
    """Return what puts a batch in force together with the rules of a container that starts.

    One batch, so that the kernel is asked once.
    """

    def put(batch: Sequence[nftables.Command], *, fresh: bool) -> None:
        own = rules.table(node.paths.instance, env.uuid)
        done = False
        with _tolerant(env, config, retried=fresh):
            wanted, _ = _rules(node, env, config, plan, rules.NOTHING)
            more = rules.install(own, wanted, rules.NOTHING, fresh=fresh)
            nftables.apply([*batch, *([] if fresh else own.drop()), *more])
            done = True
        if not done:  # the other rules do not depend on these
            nftables.apply(batch)

    return put


def following(
    node: Node, env: Environment, old: tuple[NetworkPlan, Config], new: tuple[NetworkPlan, Config]
) -> Callable[[], None]:
    """Return what brings the rules along when the interfaces change; addresses are none of them."""

    def bring() -> None:
        plan, config = new
        if old[0].torn or watched(*old) != watched(*new):
            if plan.interfaces:
                _put(node, env, config, plan)
            else:
                clean(node, env.uuid)

    return bring


@contextmanager
def _tolerant(env: Environment, config: Config, *, retried: bool = False) -> Iterator[None]:
    """Go on when the node cannot count and shape, unless CONFIG asks for it (or it is RETRIED)."""
    try:
        yield
    except (NetworkError, Unsupported) as error:
        network = config.network
        if retried or network.rates or any(each.enabled for each in network.firewalls):
            raise
        log.warning("%s: traffic is neither counted nor shaped: %s", env.name, error)


def _rules(
    node: Node, env: Environment, config: Config, plan: NetworkPlan, now: rules.Present
) -> tuple[rules.Rules, int]:
    """Make the classes of HTB; return the rules, and the slot of the container (0: not shaped)."""
    interfaces = watched(plan, config)
    shape, slot = Shape(Policy(), {}), 0
    # Nothing of HTB is there on a node that has never shaped, nor at the links of one that starts.
    if node.config().traffic_shaping or (_shapes(node) and now is not rules.NOTHING):
        with Netlink() as netlink:
            shape = _shape(node, config, netlink)
            slot = _make_tree(node, env.uuid, shape, interfaces, netlink)
    token = now.token or secrets.token_hex(8)
    made = rules.Rules(token, interfaces, _spans(node), shape.limits, slot, device(node))
    return made, slot


def change(node: Node, env: Environment, old: Config, new: Config, undo: ExitStack) -> None:
    """Bring a running container's traffic from OLD to NEW; undone by UNDO."""
    undo.callback(_change_back, node, env, old)
    apply(node, env, new)


def clean(node: Node, uuid: str) -> None:
    """Take away what a container's traffic has on the node, its counters written.  Idempotent."""
    own = rules.table(node.paths.instance, uuid)
    with suppress(Unsupported):
        now = rules.present(nftables.listed(own))
        if now.token:
            _note(node, uuid, now)
            nftables.apply(own.drop())
    if _shapes(node):
        with Netlink() as netlink:
            _leave_tree(node, uuid, netlink)


def forget(node: Node, uuid: str) -> None:
    """Forget what a deleted container has moved."""
    clean(node, uuid)
    accounting.forget(node.paths, uuid)


def counters(node: Node, uuid: str) -> accounting.Counters:
    """Return everything that a container has moved, running or not (and write it down)."""
    with suppress(Unsupported):
        now = rules.present(nftables.listed(rules.table(node.paths.instance, uuid)))
        if now.token:
            return accounting.total(_note(node, uuid, now))
    return accounting.total(accounting.load(node.paths, uuid))


def reset_counters(node: Node, ref: str) -> None:
    """Count from zero again; raises EnvironmentNotFound."""
    env = node.registry.resolve(ref)
    now = rules.present(nftables.listed(rules.table(node.paths.instance, env.uuid)))
    # What the table shows is taken off what is done: so the table need not be touched.
    before = {name: (-packets, -octets) for name, (packets, octets) in now.counters.items()}
    accounting.save(node.paths, env.uuid, accounting.Record(before, now.token, dict(now.counters)))


def rows(
    node: Node, refs: Sequence[str], *, versions: str = "46"
) -> list[tuple[Environment, Traffic]]:
    """Return the traffic of the named containers, or of all; one without any has a row of zeros.

    Raises EnvironmentNotFound, BadValue.
    """
    if versions not in {"4", "6", "46"}:
        raise BadValue(f"'{versions}' is not 4, 6 or 46")
    found = [node.registry.resolve(ref) for ref in refs] or node.registry.environments()
    return [
        (env, each)
        for env in found
        for each in traffic(node, env.uuid, versions=versions) or [Traffic(classes.REST)]
    ]


def traffic(node: Node, uuid: str, *, versions: str = "46") -> list[Traffic]:
    """Return what each class has moved; versions: "4", "6" or both."""
    return accounting.traffic(counters(node, uuid), versions=versions)


def statistics(node: Node, uuid: str) -> list[tuple[str, str]]:
    """Return the rows of `prlctl statistics`: class, bytes and packets in, then out."""
    found = counters(node, uuid)
    rows: list[tuple[str, str]] = []
    for suffix, versions in (("", "46"), (".ipv4", "4"), (".ipv6", "6")):
        for each in accounting.traffic(found, versions=versions):
            rows.append((f"net.classful.traffic{suffix}", " ".join(map(str, each))))
    return rows


class CardTraffic(NamedTuple):
    """What a card has moved, as its environment sees it.  name: inside; host_name: on the node."""

    name: str
    host_name: str
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    errors_in: int = 0
    errors_out: int = 0
    dropped_in: int = 0
    dropped_out: int = 0


def by_card(node: Node, uuid: str) -> list[CardTraffic]:
    """Return the counters of every card that is plugged in, venet0 among them, in their order."""
    plan = Links(node.paths).applied(uuid)
    cards = plan.interfaces if plan else ()
    found = Requests().passed(card.host_name for card in cards)
    rows: list[CardTraffic] = []
    for card in cards:
        end = found.get(card.host_name)  # what it sends is what the environment receives
        if end is not None:
            seen = (
                *(end.packets_out, end.packets_in, end.bytes_out, end.bytes_in),
                *(end.errors_out, end.errors_in, end.dropped_out, end.dropped_in),
            )
            rows.append(CardTraffic(card.name, card.host_name, *seen))
    return rows


def cards(node: Node, uuid: str) -> list[tuple[str, str]]:
    """Return the rows net.nicN.{pkts,bytes}_{in,out} of the cards (net0, net1, ...) that run."""
    rows: list[tuple[str, str]] = []
    own = [each for each in by_card(node, uuid) if each.name != ROUTED]
    for number, each in enumerate(own):
        rows += [
            (f"net.nic{number}.pkts_in", str(each.packets_in)),
            (f"net.nic{number}.pkts_out", str(each.packets_out)),
            (f"net.nic{number}.bytes_in", str(each.bytes_in)),
            (f"net.nic{number}.bytes_out", str(each.bytes_out)),
        ]
    return rows


def save_all(node: Node) -> None:
    """Write every container's counters down, for the case that the node crashes."""
    for uuid in node.runtime.running():
        try:
            counters(node, uuid)
        except (VZError, OSError):
            log.exception("%s: its traffic could not be written down", uuid)


def restart(node: Node) -> tuple[str, ...]:
    """Read the node's classes and rates again for every running container; return their names.

    Raises ConfigError, BadValue before anything changes.
    """
    _spans(node)
    shaping.policy(node.config())
    done: list[str] = []
    for uuid in node.runtime.running():
        env = node.registry.resolve(uuid)
        with node.lease(env, "set"):
            apply(node, env, node.registry.config(env))
        done.append(env.name)
    return tuple(done)


def device(node: Node) -> str:
    """Return the name of the device through which containers' packets are shaped."""
    return f"ifb-{node.paths.instance.rpartition('-')[2]}"


def network_classes(node: Node) -> tuple[TrafficClass, ...]:
    """Return the node's classes; raises ConfigError."""
    path = node.paths.conf / "networks_classes"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = classes.DEFAULT
    return classes.parse(text, str(path))


def change_classes(node: Node, add: Sequence[str], delete: Sequence[str]) -> None:
    """Add and take away classes (``CLASS:CIDR``) in the node's file; raises BadValue, NotFound."""
    path = node.paths.conf / "networks_classes"
    text = path.read_text(encoding="utf-8") if path.exists() else classes.DEFAULT
    lines = text.splitlines()
    for word in delete:
        gone = classes.parse_class(word)
        left = [line for line in lines if classes.parse(line) != (gone,)]
        if len(left) == len(lines):
            raise NotFound(f"There is no network class {gone.number} {gone.network}")
        lines = left
    for word in add:
        new = classes.parse_class(word)
        if all(classes.parse(line) != (new,) for line in lines):
            lines.append(f"{new.number} {new.network}")
    write_atomic(path, ("\n".join(lines) + "\n").encode(), 0o644)


def _shapes(node: Node) -> bool:
    """Whether containers are, or were, shaped on this node since it booted."""
    return (node.paths.run / "shaping.json").exists()


def _spans(node: Node) -> dict[int, tuple[classes.Span, ...]]:
    found = network_classes(node)
    return {version: classes.spans(found, version) for version in (4, 6)}


def _shape(node: Node, config: Config, netlink: Netlink) -> Shape:
    if not node.config().traffic_shaping:
        return Shape(Policy(), {})
    uplink = _uplink(netlink)
    policy = shaping.policy(node.config(), uplink)
    network = config.network
    limits = shaping.limits(policy, network.rates, bound=network.rate_bound, uplink=uplink)
    return Shape(policy, limits)


def _uplink(netlink: Netlink) -> str:
    index = netlink.route_link(_WORLD)
    return next((link.name for link in netlink.links() if link.index == index), "")


def _make_tree(
    node: Node,
    uuid: str,
    shape: Shape,
    interfaces: Sequence[rules.Watched],
    netlink: Netlink,
) -> int:
    """Make the classes of HTB for one container; return its slot, 0 when it is not shaped."""
    for each in interfaces:
        _set_tree(netlink, netlink.need(each.host).index, shaping.receiving(shape.limits))
    if not shape.limits:
        return 0
    with trafficslots.held(node.paths) as slots:
        slot = shaping.slot_for(uuid, slots)
        slots[uuid] = slot
        index = _shaping_device(node, netlink)
        shared = shaping.node_tree(shape.policy)
        own = shaping.sending(shape.policy, shape.limits, slot)
        _move_leaves(netlink, index, own)
        for made in (*shared, *own):
            netlink.set_htb_class(index, made._replace(minimum=shape.policy.minimum))
        present = netlink.htb_classes(index)
        for minor in present:
            if minor >> 4 == slot and minor not in {made.minor for made in own}:
                netlink.delete_htb_class(index, minor)
        return slot


def _move_leaves(netlink: Netlink, index: int, wanted: Sequence[HtbRate]) -> None:
    """HTB cannot give a class another parent: those that need one are taken away."""
    present = netlink.htb_classes(index)
    for made in wanted:
        if present.get(made.minor, made.parent) != made.parent:
            netlink.delete_htb_class(index, made.minor)


def _set_tree(netlink: Netlink, index: int, tree: Sequence[HtbRate]) -> None:
    if not tree:
        netlink.delete_htb(index)
        return
    netlink.add_htb(index)
    for made in tree:
        netlink.set_htb_class(index, made)
    for minor in set(netlink.htb_classes(index)) - {made.minor for made in tree}:
        netlink.delete_htb_class(index, minor)


def _shaping_device(node: Node, netlink: Netlink) -> int:
    name = device(node)
    found = netlink.link(name)
    if found is None:
        netlink.add_link("ifb", name)
        found = netlink.need(name)
        netlink.set_alias(found.index, f"{node.paths.instance}:shaping")
    netlink.set_link(found.index, state="up", txqlen=_QUEUE)
    netlink.add_htb(found.index)
    return found.index


_QUEUE = 1000  # packets that wait in a class; ifb has 32 otherwise


def _leave_tree(node: Node, uuid: str, netlink: Netlink) -> None:
    """Take a container's classes away, and with the last one the device.  Idempotent."""
    with trafficslots.held(node.paths) as slots:
        slot = slots.pop(uuid, 0)
        found = netlink.link(device(node)) if slot else None
        if found is None:
            return
        if not slots:
            netlink.delete_link(found.index)
            return
        for minor in netlink.htb_classes(found.index):
            if minor != shaping.ROOT and minor >> 4 == slot:
                netlink.delete_htb_class(found.index, minor)


def _note(node: Node, uuid: str, now: rules.Present) -> accounting.Record:
    before = accounting.load(node.paths, uuid)
    record = before.seen(now.token, now.counters)
    if record != before:
        accounting.save(node.paths, uuid, record)
    return record


def _change_back(node: Node, env: Environment, old: Config) -> None:
    try:
        apply(node, env, old)
    except (VZError, OSError):
        log.exception("%s: the rules of its traffic could not be put back", env.name)
