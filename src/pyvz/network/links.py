"""Carrying a plan out: links, addresses, routes, proxy entries and rules of one container.

What has been put down is written to <run>/network/<uuid>.json before it is done, so whoever comes
after a crash knows what there may be; every removal is idempotent.  The node's end of each pair
carries the alias "<instance>:<uuid>": nothing without it is ever removed or changed.  The caller
holds the environment's lease.  Inside, everything goes through a netlink socket of the container's
namespace; this process stays where it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from pyvz.errors import AlreadyExists, NetworkError
from pyvz.linux import nftables
from pyvz.linux.file import flock, write_atomic
from pyvz.linux.netlink import Link, VethEnd
from pyvz.linux.rtnetlink import LinkChange, Requests
from pyvz.linux.tap import open_tap
from pyvz.network import antispoof, ends, netdev
from pyvz.network.base import Interface, NetworkPlan
from pyvz.store.paths import Paths

_LOCK_TIMEOUT = 60.0


class Put(Protocol):
    """Puts a batch in force.  fresh: it fails unless the container has no rules of any kind."""

    def __call__(self, batch: Sequence[nftables.Command], *, fresh: bool) -> None:
        """Raises NetworkError."""


def put_alone(batch: Sequence[nftables.Command], *, fresh: bool) -> None:
    """Put a batch in force as it is."""
    del fresh
    nftables.apply(batch)


def _nothing() -> None:
    """Do nothing."""


class Between(NamedTuple):
    """What others do while a plan is put in place.

    put: puts the rules in force.  ready: is called when all is made and nothing leads anywhere yet.
    """

    put: Put = put_alone
    ready: Callable[[], None] = _nothing


NOBODY = Between()


class Inside(NamedTuple):
    """A container's network namespace: descriptors of it, and of a netlink socket made inside."""

    namespace: int
    netlink: int


class Links:
    """The links of containers on one node."""

    def __init__(self, paths: Paths) -> None:
        self._instance = paths.instance
        self._directory: Path = paths.run / "network"

    def applied(self, uuid: str) -> NetworkPlan | None:
        """Return what is, or may be, in place for a container; None: nothing."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            return NetworkPlan.from_json((self._directory / f"{uuid}.json").read_text())
        return None

    def apply(
        self, plan: NetworkPlan, inside: Inside | None, between: Between = NOBODY,
        *, plugged: bool = True,
    ) -> dict[str, int]:  # fmt: skip
        """Put a plan in place for an environment that has nothing yet; raises NetworkError.

        inside: None for a virtual machine, whose cards are taps; their descriptors, by the name of
        the node's end, are returned and the caller's.  plugged: False leaves the node's ends
        leading nowhere, until plug().  After a failure the caller calls remove().
        """
        if plan.empty:
            return {}
        self._record(plan)
        outside = Requests()
        with ExitStack() as undo:
            taps = self._make_all(plan, outside, inside, undo)
            found = outside.links(_names(plan))
            self._name(plan, found, outside)
            with self._rules(plan) as guarded:
                self._install(plan, between.put, guarded=guarded)
            between.ready()
            for each in plan.interfaces:
                self._lead(each, found, outside, plugged=plugged)
            outside.send()
            if inside is not None:
                _furnish(plan, found, inside)
                self._move(NetworkPlan(plan.uuid), plan, outside, inside)
            if plugged:
                ends.answer(plan.proxies, outside)
                outside.send()
            undo.pop_all()
            return taps

    def plug(self, uuid: str) -> NetworkPlan:
        """Let what leads nowhere lead where the plan says; returns the plan.  Idempotent."""
        plan = self.applied(uuid) or NetworkPlan(uuid)
        outside = Requests()
        found = outside.links(_names(plan))
        for each in plan.interfaces:
            self._lead(each, found, outside)
        ends.answer(plan.proxies, outside)
        outside.send()
        return plan

    def unplug(self, uuid: str) -> NetworkPlan:
        """Let the node's ends lead nowhere: nothing comes in or goes out.  Idempotent."""
        plan = self.applied(uuid) or NetworkPlan(uuid)
        outside = Requests()
        found = outside.links(_names(plan))
        ends.answer_no_more(plan.proxies, outside)
        for each in plan.interfaces:
            link = self._mine(uuid, found.get(each.host_name))
            if link is not None:
                ends.unplug(each, link, outside)
        outside.send()
        return plan

    def change(
        self,
        old: NetworkPlan,
        new: NetworkPlan,
        inside: Inside | None,
        then: Callable[[], None] | None = None,
    ) -> dict[str, int]:
        """Bring what runs from one plan to another; raises NetworkError.

        Returns the descriptors of new taps as apply() does.  then: is called last, and until it has
        ended the record says that the change is not over.  What was done by then is undone by the
        caller with change(new, old).
        """
        if old == new:
            return {}
        self._record(_union(old, new))
        outside = Requests()
        with ExitStack() as undo:
            fresh, found = self._missing(old, new, outside)
            taps = self._make_all(fresh, outside, inside, undo)
            # Nobody knows how far somebody had come: then all of it is done again.
            whole = new if old.torn else fresh
            if fresh.interfaces:
                found = outside.links(_names(new))
            self._name(whole, found, outside)
            with self._rules(old) as guarded:
                try:
                    ground = antispoof.Ground(guarded=guarded or bool(old.routed))
                    nftables.apply(antispoof.change(self._instance, old, new, ground))
                except NetworkError:  # the node's table is not as we have left it
                    nftables.apply(antispoof.change(self._instance, old, new))
            for after in whole.interfaces:
                self._lead(after, found, outside)
            outside.send()
            if inside is not None:
                _furnish(whole, found, inside)
                self._move(old, new, outside, inside)
            if old.torn:
                self._scrape(old, new, found, outside, inside)
            else:
                self._alter_all(old, new, whole, (found, outside, inside))
            ends.answer_no_more(set(old.proxies) - set(new.proxies), outside)
            ends.answer(set(new.proxies) - (set() if old.torn else set(old.proxies)), outside)
            outside.send()
            if then is not None:
                then()
            undo.pop_all()
        self._record(new)
        return taps

    def remove(self, uuid: str) -> None:
        """Take everything of a container away; idempotent."""
        plan = self.applied(uuid)
        netdev.release(self._held(uuid), plan.devices if plan else ())
        if plan is None:
            return
        outside = Requests()
        found = outside.links(each.host_name for each in plan.interfaces)
        for link in found.values():
            # By name and alias, because a namespace goes asynchronously and its pairs with it.
            if self._mine(uuid, link) is not None:
                outside.delete_link(link)
        ends.answer_no_more(plan.proxies, outside)
        outside.send()
        with self._rules(plan):
            last = not self._others(uuid)
            nftables.apply(antispoof.remove(self._instance, plan, last=last))
            (self._directory / f"{uuid}.json").unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Return the uuids for which something is, or may be, in place."""
        return [path.stem for path in self._directory.glob("*.json")]

    # -- records --------------------------------------------------------------------------------

    def _record(self, plan: NetworkPlan) -> None:
        path = self._directory / f"{plan.uuid}.json"
        if plan.empty:
            path.unlink(missing_ok=True)
            return
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        # What it speaks of does not outlive the kernel either.
        write_atomic(path, plan.to_json(), 0o600, durable=False)

    @contextmanager
    def _rules(self, plan: NetworkPlan) -> Iterator[bool]:
        """Hold the node's table of addresses, so that the last one to go knows that it is.

        Gives whether the table is there already, for all that we know.
        """
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with flock(self._directory / ".lock", timeout=_LOCK_TIMEOUT):
            yield self._others(plan.uuid)

    def _others(self, uuid: str) -> bool:
        return any(path.stem != uuid for path in self._directory.glob("*.json"))

    def _install(self, plan: NetworkPlan, put: Put, *, guarded: bool) -> None:
        """Put the rules of a container that starts in force, quickly where nothing is there."""
        try:
            ground = antispoof.Ground(fresh=True, guarded=guarded)
            put(antispoof.install(self._instance, plan, ground), fresh=True)
        except NetworkError:
            put(antispoof.install(self._instance, plan), fresh=False)

    # -- the node's side ------------------------------------------------------------------------

    def _alias(self, uuid: str) -> str:
        return f"{self._instance}:{uuid}"

    def _mine(self, uuid: str, link: Link | None) -> Link | None:
        """Return the link when it is this container's.

        One without an alias is: it was made and not named, when somebody died in between; the
        name alone was ours already, else making it would have failed.
        """
        if link is None or link.kind not in {"veth", "tun"}:
            return None
        return link if link.alias in {"", self._alias(uuid)} else None

    def _make_all(
        self, plan: NetworkPlan, outside: Requests, inside: Inside | None, undo: ExitStack
    ) -> dict[str, int]:
        """Make the pairs and taps of a plan, all ends down; taps are closed by UNDO."""
        taps: dict[str, int] = {}
        for left in outside.links(each.host_name for each in plan.interfaces).values():
            if left.alias != self._alias(plan.uuid):
                raise AlreadyExists(f"There is a network interface {left.name} already")
            outside.delete_link(left)
        for each in plan.interfaces:
            if each.tap:
                taps[each.host_name] = open_tap(each.host_name)
                undo.callback(os.close, taps[each.host_name])
            elif inside is not None:
                outside.veth(
                    VethEnd(each.host_name, each.host_mac),
                    VethEnd(each.name, each.mac, inside.namespace),
                )
        outside.send()
        return taps

    def _missing(
        self, old: NetworkPlan, new: NetworkPlan, outside: Requests
    ) -> tuple[NetworkPlan, dict[str, Link]]:
        """Take away the pairs that cannot stay; return what of NEW is to be made, and the links."""
        found = outside.links((*_names(old), *_names(new)))
        for before in old.interfaces:
            after = new.interface(before.name)
            if after is None or not ends.same_pair(before, after):
                link = self._mine(old.uuid, found.pop(before.host_name, None))
                if link is not None:
                    outside.delete_link(link)
        outside.send()
        fresh = [x for x in new.interfaces if not self._mine(new.uuid, found.get(x.host_name))]
        return new._replace(interfaces=tuple(fresh)), found

    def _name(self, plan: NetworkPlan, found: Mapping[str, Link], outside: Requests) -> None:
        """Mark the node's ends as ours and make them plain ports."""
        for each in plan.interfaces:
            mac = each.host_mac if each.tap else ""
            arp = False if each.kind == "routed" and not each.tap else None
            link = _needed(found, each.host_name)
            outside.link(link, LinkChange(arp=arp, alias=self._alias(plan.uuid), mac=mac))
        outside.send()
        for each in plan.interfaces:
            ends.prepare(each)

    def _lead(
        self,
        interface: Interface,
        found: Mapping[str, Link],
        outside: Requests,
        *,
        plugged: bool = True,
    ) -> None:
        link = _needed(found, interface.host_name)
        bridge = _needed(found, interface.bridge) if interface.bridge else None
        if plugged:
            ends.plug(interface, link, bridge, outside)
        else:
            mtu = bridge.mtu if bridge and bridge.mtu != link.mtu else 0
            outside.link(link, LinkChange(up=interface.connected, mtu=mtu))

    def _held(self, uuid: str) -> Path:
        return self._directory / f"{uuid}.ns"

    def _move(self, old: NetworkPlan, new: NetworkPlan, outside: Requests, inside: Inside) -> None:
        """Move the node's interfaces in that NEW has, and those out that only OLD has."""
        netdev.give_back([x for x in old.devices if x not in new.devices], Requests(inside.netlink))
        here = outside.links(new.devices)  # also when OLD has them: it may be torn
        fresh = [x for x in new.devices if x in here or x not in old.devices]
        if fresh:
            netdev.hold(self._held(new.uuid), inside.namespace)
            netdev.take(fresh, inside.namespace, outside)
        if not new.devices:
            netdev.release(self._held(new.uuid), ())

    def _alter_all(
        self,
        old: NetworkPlan,
        new: NetworkPlan,
        done: NetworkPlan,
        ways: tuple[Mapping[str, Link], Requests, Inside | None],
    ) -> None:
        """Alter the interfaces of NEW but those of DONE."""
        for after in new.interfaces:
            if after not in done.interfaces:
                self._alter(old.interface(after.name) or after, after, *ways)

    def _alter(
        self,
        before: Interface,
        after: Interface,
        found: Mapping[str, Link],
        outside: Requests,
        inside: Inside | None,
    ) -> None:
        """Bring one interface, whose pair stays, from one plan to the other."""
        link = _needed(found, after.host_name)
        if _leading(before) != _leading(after):
            self._lead(after, found, outside)
        if after.connected:
            had, has = dict.fromkeys(before.routes), dict.fromkeys(after.routes)
            for address in had:
                if address not in has:
                    outside.delete_route(ends.host_route(after, address, link.index))
            fresh = [each for each in has if each not in had]
            ends.route_to(after, fresh, link.index, outside)
        if inside is not None:
            within = Requests(inside.netlink)
            card = _needed(within.links([after.name]), after.name)
            ends.alter(before, after, card.index, within)
            within.send()

    def _scrape(
        self,
        old: NetworkPlan,
        new: NetworkPlan,
        found: Mapping[str, Link],
        outside: Requests,
        inside: Inside | None,
    ) -> None:
        """Take from interfaces that are as NEW has them what a torn OLD has, or may have, more."""
        for after in new.interfaces:
            before = next((x for x in old.interfaces if x.host_name == after.host_name), after)
            link = _needed(found, after.host_name)
            for address in set(before.routes) - set(after.routes if after.connected else ()):
                outside.delete_route(ends.host_route(after, address, link.index))
            if inside is not None:
                within = Requests(inside.netlink)
                card = _needed(within.links([after.name]), after.name)
                ends.scrape(before, after, card.index, within)
                within.send()


def _furnish(plan: NetworkPlan, found: Mapping[str, Link], inside: Inside) -> None:
    """Do the inner ends; FOUND: the node's links, for the bridges' largest packets."""
    if not plan.interfaces:
        return
    within = Requests(inside.netlink)
    cards = within.links(each.name for each in plan.interfaces)
    for each in plan.interfaces:
        card = _needed(cards, each.name)
        mtu = found[each.bridge].mtu if each.bridge in found else card.mtu
        ends.furnish(each, card, within, mtu=mtu if mtu != card.mtu else 0)
    within.send()


def _leading(each: Interface) -> tuple[str, bool, bool]:
    """What decides about the node's end, but addresses."""
    return each.bridge, each.connected, each.filter.mac


def _names(plan: NetworkPlan) -> list[str]:
    """The links of the node that a plan is about."""
    return [name for each in plan.interfaces for name in (each.host_name, each.bridge) if name]


def _needed(found: Mapping[str, Link], name: str) -> Link:
    if name not in found:
        raise NetworkError(f"There is no network interface {name}")
    return found[name]


def _union(old: NetworkPlan, new: NetworkPlan) -> NetworkPlan:
    """Everything that either of two plans has put down: what a crash between them may leave."""
    names = {each.host_name for each in new.interfaces}
    merged = [each for each in old.interfaces if each.host_name not in names]
    for each in new.interfaces:
        former = next((e for e in old.interfaces if e.host_name == each.host_name), each)
        merged.append(
            each._replace(
                routes=tuple(dict.fromkeys((*each.routes, *former.routes))),
                addresses=tuple(dict.fromkeys((*each.addresses, *former.addresses))),
            )
        )
    proxies = tuple(dict.fromkeys((*new.proxies, *old.proxies)))
    devices = tuple(dict.fromkeys((*new.devices, *old.devices)))
    return NetworkPlan(new.uuid, tuple(merged), proxies, torn=True, devices=devices)
