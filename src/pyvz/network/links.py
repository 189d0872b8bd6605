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

from pyvz.errors import AlreadyExists, NetworkError
from pyvz.linux import nftables
from pyvz.linux.file import flock, write_atomic
from pyvz.linux.netlink import Link, Netlink, VethEnd
from pyvz.linux.tap import open_tap
from pyvz.network import antispoof, ends
from pyvz.network.base import Interface, NetworkPlan
from pyvz.store.paths import Paths

_LOCK_TIMEOUT = 30.0

Put = Callable[[Sequence[nftables.Command]], None]


class Inside:
    """A container's network namespace: a descriptor of it, and netlink spoken inside."""

    def __init__(self, namespace: int, netlink: Netlink) -> None:
        self.namespace = namespace
        self.netlink = netlink


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
        self, plan: NetworkPlan, inside: Inside | None, put: Put = nftables.apply,
        *, plugged: bool = True,
    ) -> dict[str, int]:  # fmt: skip
        """Put a plan in place for an environment that has nothing yet; raises NetworkError.

        inside: None for a virtual machine, whose cards are taps; their descriptors, by the name of
        the node's end, are returned and the caller's.  put: puts the rules in force.  plugged:
        False leaves the node's ends leading nowhere, until plug().  After a failure the caller
        calls remove().
        """
        if not plan.interfaces:
            return {}
        self._record(plan)
        with Netlink() as outside, ExitStack() as undo:
            taps = self._make_all(plan, outside, inside, undo)
            found = {link.name: link for link in outside.links()}
            self._name(plan, found, outside)
            with self._rules():
                put(antispoof.install(self._instance, plan))
            for each in plan.interfaces:
                self._lead(each, found, outside, plugged=plugged)
            if inside is not None:
                _furnish(plan, found, inside, settled=not plugged)
            if plugged:
                ends.answer(plan.proxies, outside)
            undo.pop_all()
            return taps

    def plug(self, uuid: str) -> NetworkPlan:
        """Let what leads nowhere lead where the plan says; returns the plan.  Idempotent."""
        plan = self.applied(uuid) or NetworkPlan(uuid)
        with Netlink() as outside:
            found = {link.name: link for link in outside.links()}
            for each in plan.interfaces:
                self._lead(each, found, outside)
            ends.answer(plan.proxies, outside)
        return plan

    def unplug(self, uuid: str) -> NetworkPlan:
        """Let the node's ends lead nowhere: nothing comes in or goes out.  Idempotent."""
        plan = self.applied(uuid) or NetworkPlan(uuid)
        with Netlink() as outside:
            ends.answer_no_more(plan.proxies, outside)
            for each in plan.interfaces:
                link = self._mine(uuid, outside.link(each.host_name))
                if link is not None:
                    ends.unplug(each, link, outside)
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
        with Netlink() as outside, ExitStack() as undo:
            fresh, found = self._missing(old, new, outside)
            taps = self._make_all(fresh, outside, inside, undo)
            # Nobody knows how far somebody had come: then all of it is done again.
            whole = new if old.torn else fresh
            if fresh.interfaces:
                found = {link.name: link for link in outside.links()}
            self._name(whole, found, outside)
            with self._rules():
                nftables.apply(antispoof.change(self._instance, old, new))
            for after in whole.interfaces:
                self._lead(after, found, outside)
            if inside is not None:
                _furnish(whole, found, inside)
            if old.torn:
                self._scrape(old, new, found, outside, inside)
            for after in new.interfaces:
                if after not in whole.interfaces:
                    self._alter(old.interface(after.name) or after, after, found, outside, inside)
            ends.answer_no_more(set(old.proxies) - set(new.proxies), outside)
            ends.answer(set(new.proxies) - (set() if old.torn else set(old.proxies)), outside)
            if then is not None:
                then()
            undo.pop_all()
        self._record(new)
        return taps

    def remove(self, uuid: str) -> None:
        """Take everything of a container away; idempotent."""
        plan = self.applied(uuid)
        if plan is None:
            return
        with Netlink() as outside:
            for interface in plan.interfaces:
                self._unmake(uuid, interface, outside)
            ends.answer_no_more(plan.proxies, outside)
        with self._rules():
            others = [path for path in self._directory.glob("*.json") if path.stem != uuid]
            nftables.apply(antispoof.remove(self._instance, plan, last=not others))
            (self._directory / f"{uuid}.json").unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Return the uuids for which something is, or may be, in place."""
        return [path.stem for path in self._directory.glob("*.json")]

    # -- records --------------------------------------------------------------------------------

    def _record(self, plan: NetworkPlan) -> None:
        path = self._directory / f"{plan.uuid}.json"
        if not plan.interfaces:
            path.unlink(missing_ok=True)
            return
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, plan.to_json(), 0o600)

    @contextmanager
    def _rules(self) -> Iterator[None]:
        """Hold the node's table of addresses, so that the last one to go knows that it is."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with flock(self._directory / ".lock", timeout=_LOCK_TIMEOUT):
            yield

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
        self, plan: NetworkPlan, outside: Netlink, inside: Inside | None, undo: ExitStack
    ) -> dict[str, int]:
        """Make the pairs and taps of a plan, all ends down; taps are closed by UNDO."""
        taps: dict[str, int] = {}
        for each in plan.interfaces:
            if each.tap:
                taps[each.host_name] = open_tap(each.host_name)
                undo.callback(os.close, taps[each.host_name])
            elif inside is not None:
                self._make(plan.uuid, each, outside, inside)
        return taps

    def _missing(
        self, old: NetworkPlan, new: NetworkPlan, outside: Netlink
    ) -> tuple[NetworkPlan, dict[str, Link]]:
        """Take away the pairs that cannot stay; return what of NEW is to be made, and all links."""
        for before in old.interfaces:
            after = new.interface(before.name)
            if after is None or not ends.same_pair(before, after):
                self._unmake(old.uuid, before, outside)
        found = {link.name: link for link in outside.links()}
        fresh = [x for x in new.interfaces if not self._mine(new.uuid, found.get(x.host_name))]
        return new._replace(interfaces=tuple(fresh)), found

    def _make(self, uuid: str, interface: Interface, outside: Netlink, inside: Inside) -> None:
        name = interface.host_name
        pair = (
            VethEnd(name, interface.host_mac),
            VethEnd(interface.name, interface.mac, inside.namespace),
        )
        try:
            outside.add_veth(*pair)
        except NetworkError:
            left = outside.link(name)
            if left is None:
                raise
            if left.alias != self._alias(uuid):
                raise AlreadyExists(f"There is a network interface {name} already") from None
            outside.delete_link(left.index)
            outside.add_veth(*pair)

    def _name(self, plan: NetworkPlan, found: Mapping[str, Link], outside: Netlink) -> None:
        """Mark the node's ends as ours and make them plain ports."""
        for each in plan.interfaces:
            more: dict[str, object] = {"address": each.host_mac} if each.tap else {}
            if each.kind == "routed" and not each.tap:
                more["arp"] = False
            link = _needed(found, each.host_name)
            outside.set_link(link.index, IFLA_IFALIAS=self._alias(plan.uuid), **more)
            ends.prepare(each)

    def _lead(
        self,
        interface: Interface,
        found: Mapping[str, Link],
        outside: Netlink,
        *,
        plugged: bool = True,
    ) -> None:
        link = _needed(found, interface.host_name)
        bridge = _needed(found, interface.bridge) if interface.bridge else None
        if plugged:
            ends.plug(interface, link, bridge, outside)
        else:
            mtu = {"mtu": bridge.mtu} if bridge and bridge.mtu != link.mtu else {}
            outside.set_link(link.index, state="up" if interface.connected else "down", **mtu)

    def _unmake(self, uuid: str, interface: Interface, outside: Netlink) -> None:
        # By name and alias, because a namespace is torn down asynchronously and its pairs with it.
        found = self._mine(uuid, outside.link(interface.host_name))
        if found is not None:
            outside.delete_link(found.index)

    def _alter(
        self,
        before: Interface,
        after: Interface,
        found: Mapping[str, Link],
        outside: Netlink,
        inside: Inside | None,
    ) -> None:
        """Bring one interface, whose pair stays, from one plan to the other."""
        link = _needed(found, after.host_name)
        if (before.bridge, before.connected) != (after.bridge, after.connected):
            self._lead(after, found, outside)
        if after.connected:
            had, has = dict.fromkeys(before.routes), dict.fromkeys(after.routes)
            for address in had:
                if address not in has:
                    outside.delete_route(ends.host_route(after, address, link.index))
            fresh = [each for each in has if each not in had]
            ends.route_to(after, fresh, link.index, outside)
        if inside is not None:
            ends.alter(before, after, inside.netlink.need(after.name).index, inside.netlink)

    def _scrape(
        self,
        old: NetworkPlan,
        new: NetworkPlan,
        found: Mapping[str, Link],
        outside: Netlink,
        inside: Inside | None,
    ) -> None:
        """Take from interfaces that are as NEW has them what a torn OLD has, or may have, more."""
        for after in new.interfaces:
            before = next((x for x in old.interfaces if x.host_name == after.host_name), after)
            link = _needed(found, after.host_name)
            for address in set(before.routes) - set(after.routes if after.connected else ()):
                outside.delete_route(ends.host_route(after, address, link.index))
            if inside is not None:
                ends.scrape(before, after, inside.netlink.need(after.name).index, inside.netlink)


def _furnish(
    plan: NetworkPlan, found: Mapping[str, Link], inside: Inside, *, settled: bool = False
) -> None:
    """Do the inner ends; FOUND: the node's links, for the bridges' largest packets."""
    if not plan.interfaces:
        return
    cards = {link.name: link for link in inside.netlink.links()}
    for each in plan.interfaces:
        card = _needed(cards, each.name)
        mtu = found[each.bridge].mtu if each.bridge in found else card.mtu
        ends.furnish(
            each,
            card.index,
            inside.netlink,
            mtu=mtu if mtu != card.mtu else 0,
            settled=settled,
        )


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
    return NetworkPlan(new.uuid, tuple(merged), proxies, torn=True)
