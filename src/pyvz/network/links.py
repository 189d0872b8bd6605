"""Carrying a plan out: links, addresses, routes, proxy entries and rules of one container.

What has been put down is written to <run>/network/<uuid>.json before it is done, so whoever comes
after a crash knows what there may be; every removal is idempotent.  The node's end of each pair
carries the alias "<instance>:<uuid>": nothing without it is ever removed or changed.  The caller
holds the environment's lease.  Inside, everything goes through a netlink socket of the container's
namespace; this process stays where it is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from pyvz.errors import AlreadyExists, NetworkError
from pyvz.linux import nftables
from pyvz.linux.file import flock, write_atomic
from pyvz.linux.netlink import SCOPE_LINK, Link, Netlink, Route, VethEnd, set_sysctl
from pyvz.network import antispoof
from pyvz.network.base import Interface, NetworkPlan, family
from pyvz.store.paths import Paths

_LOCK_TIMEOUT = 30.0
_FAMILIES = {"4": socket.AF_INET, "6": socket.AF_INET6}


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

    def apply(self, plan: NetworkPlan, inside: Inside) -> None:
        """Put a plan in place for a container that has nothing yet; raises NetworkError.

        After a failure the caller calls remove().
        """
        if not plan.interfaces:
            return
        self._record(plan)
        with Netlink() as outside:
            for interface in plan.interfaces:
                self._make(plan.uuid, interface, outside, inside)
            with self._rules():
                nftables.apply(antispoof.install(self._instance, plan))
            for interface in plan.interfaces:
                mtu = self._connect(interface, outside)
                _configure(interface, inside.netlink, mtu)
            _answer(plan, outside)

    def change(self, old: NetworkPlan, new: NetworkPlan, inside: Inside) -> None:
        """Bring a running container from one plan to another; raises NetworkError.

        What was done by then is undone by the caller with change(new, old).
        """
        if old == new:
            return
        self._record(_union(old, new))
        with Netlink() as outside:
            for before in old.interfaces:
                after = new.interface(before.name)
                if after is None or not _same_pair(before, after):
                    self._unmake(old.uuid, before, outside)
            for after in new.interfaces:
                if self._mine(old.uuid, outside.link(after.host_name)) is None:
                    self._make(new.uuid, after, outside, inside)
            with self._rules():
                nftables.apply(antispoof.change(self._instance, old, new))
            for after in new.interfaces:
                before_ = old.interface(after.name)
                if before_ is not None and _same_pair(before_, after):
                    self._alter(before_, after, outside, inside.netlink)
                else:
                    mtu = self._connect(after, outside)
                    _configure(after, inside.netlink, mtu)
            _answer_no_more(old, new, outside)
            _answer(new, outside)
        self._record(new)

    def remove(self, uuid: str) -> None:
        """Take everything of a container away; idempotent."""
        plan = self.applied(uuid)
        if plan is None:
            return
        with Netlink() as outside:
            for interface in plan.interfaces:
                self._unmake(uuid, interface, outside)
            _answer_no_more(plan, NetworkPlan(uuid), outside)
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
        if link is None or link.kind != "veth" or link.alias not in {"", self._alias(uuid)}:
            return None
        return link

    def _make(self, uuid: str, interface: Interface, outside: Netlink, inside: Inside) -> None:
        """Make a pair, its far end in the container; both ends stay down."""
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
        arp = {} if interface.kind != "routed" else {"arp": False}
        outside.set_link(outside.need(name).index, IFLA_IFALIAS=self._alias(uuid), **arp)
        _settings(interface)

    def _unmake(self, uuid: str, interface: Interface, outside: Netlink) -> None:
        # By name and alias, because a namespace is torn down asynchronously and its pairs with it.
        found = self._mine(uuid, outside.link(interface.host_name))
        if found is not None:
            outside.delete_link(found.index)

    def _connect(self, interface: Interface, outside: Netlink) -> int:
        """Plug the node's end in: up, into its bridge, and with routes to it.

        Returns the largest packet of the bridge, which both ends must have; 0: as it is.
        """
        link = outside.need(interface.host_name)
        changed: dict[str, int] = {}
        if interface.bridge:
            bridge = outside.need(interface.bridge)
            changed["master"] = bridge.index
            if bridge.mtu != link.mtu:
                changed["mtu"] = bridge.mtu
        elif link.master:
            changed["master"] = 0
        outside.set_link(link.index, state="up" if interface.connected else "down", **changed)
        if interface.connected:
            _route_to(interface, interface.routes, link.index, outside)
        return changed.get("mtu", 0)

    def _alter(
        self, before: Interface, after: Interface, outside: Netlink, inside: Netlink
    ) -> None:
        """Bring one interface, whose pair stays, from one plan to the other."""
        link = outside.need(after.host_name)
        if (before.bridge, before.connected) != (after.bridge, after.connected):
            self._connect(after, outside)
        if after.connected:
            for address in set(before.routes) - set(after.routes):
                outside.delete_route(_host_route(after, address, link.index))
            known = set(before.routes)
            fresh = [each for each in after.routes if each not in known]
            _route_to(after, fresh, link.index, outside)
        index = inside.need(after.name).index
        for address in set(before.addresses) - set(after.addresses):
            inside.delete_address(index, address)
        there = set(before.addresses)
        for address in after.addresses:
            if address not in there:
                inside.add_address(index, address)
        if (before.default, before.gateways) != (after.default, after.gateways):
            for route in _defaults(before, index):
                inside.delete_route(route)
        # Also when they are the same: with the last address of a family its routes are gone.
        for route in _defaults(after, index):
            inside.replace_route(route)


def _settings(interface: Interface) -> None:
    """Make the node's end a plain port: no address of its own, nothing learned from inside."""
    name = interface.host_name
    settings = {
        f"net/ipv6/conf/{name}/addr_gen_mode": "1",  # no link-local address
        f"net/ipv6/conf/{name}/accept_ra": "0",
        f"net/ipv6/conf/{name}/accept_redirects": "0",
        f"net/ipv4/conf/{name}/accept_redirects": "0",
    }
    if interface.kind == "routed":
        settings[f"net/ipv4/conf/{name}/forwarding"] = "1"
        # Since 6.17; before, IPv6 is forwarded only where the whole node does (all/forwarding).
        settings[f"net/ipv6/conf/{name}/force_forwarding"] = "1"
    else:
        settings[f"net/ipv6/conf/{name}/disable_ipv6"] = "1"
    for key, value in settings.items():
        set_sysctl(key, value, optional=True)


def _configure(interface: Interface, inside: Netlink, mtu: int) -> None:
    """Addresses and routes inside; the link is up there also while its cable is unplugged."""
    index = inside.need(interface.name).index
    changed: dict[str, int] = {"mtu": mtu} if mtu else {}
    if interface.kind == "routed":
        changed["arp"] = False
    inside.set_link(index, state="up", **changed)
    for address in interface.addresses:
        inside.add_address(index, address)
    if interface.connected:
        for route in _defaults(interface, index):
            inside.replace_route(route)


def _defaults(interface: Interface, index: int) -> list[Route]:
    """The default routes of an interface: by its gateway, else on the link itself."""
    made = []
    by_family = {family(each): each for each in interface.gateways}
    for version in interface.default:
        via = by_family.get(version, "")
        scope = SCOPE_LINK if version == "4" and not via else None
        onlink = bool(via) and ip_address(via).is_link_local
        made.append(
            Route(
                "default",
                index,
                _FAMILIES[version],
                via=via,
                scope=scope,
                onlink=onlink and version == "4",
            )
        )
    return made


def _route_to(
    interface: Interface, addresses: list[str] | tuple[str, ...], index: int, outside: Netlink
) -> None:
    for address in addresses:
        outside.replace_route(_host_route(interface, address, index))


def _host_route(interface: Interface, address: str, index: int) -> Route:
    version = family(address)
    source = next((each for each in interface.sources if family(each) == version), "")
    return Route(
        f"{address}/{ip_address(address).max_prefixlen}",
        index,
        _FAMILIES[version],
        source=source,
        scope=SCOPE_LINK if version == "4" else None,
    )


def _same_pair(before: Interface, after: Interface) -> bool:
    """Whether the two ends may stay as they are."""
    return all(
        getattr(before, key) == getattr(after, key)
        for key in ("kind", "name", "host_name", "mac", "host_mac")
    )


def _union(old: NetworkPlan, new: NetworkPlan) -> NetworkPlan:
    """Everything that either of two plans has put down: what a crash between them may leave."""
    names = {each.host_name for each in new.interfaces}
    interfaces = [*new.interfaces, *(e for e in old.interfaces if e.host_name not in names)]
    merged = []
    for each in interfaces:
        former = next((e for e in old.interfaces if e.host_name == each.host_name), each)
        merged.append(each._replace(routes=tuple(dict.fromkeys((*each.routes, *former.routes)))))
    proxies = tuple(dict.fromkeys((*new.proxies, *old.proxies)))
    return NetworkPlan(new.uuid, tuple(merged), proxies)


def _answer(plan: NetworkPlan, outside: Netlink) -> None:
    for address, device in plan.proxies:
        link = outside.link(device)
        if link is None:
            continue
        if family(address) == "6":
            set_sysctl(f"net/ipv6/conf/{device}/proxy_ndp", "1", optional=True)
        outside.add_proxy(link.index, address)


def _answer_no_more(old: NetworkPlan, new: NetworkPlan, outside: Netlink) -> None:
    for address, device in set(old.proxies) - set(new.proxies):
        link = outside.link(device)
        if link is not None:
            outside.delete_proxy(link.index, address)


def check_free(plan: NetworkPlan, old: NetworkPlan | None, links: list[Link]) -> None:
    """Refuse what the kernel would: names and MACs of others' links, missing bridges.

    old: what the container has in place already.
    """
    by_name = {link.name: link for link in links}
    own = {each.host_name for each in (old.interfaces if old else ())}
    for each in plan.interfaces:
        taken = by_name.get(each.host_name)
        if taken is not None and each.host_name not in own and not taken.alias.endswith(plan.uuid):
            raise NetworkError(f"There is a network interface {each.host_name} already")
        bridge = by_name.get(each.bridge)
        if each.bridge and bridge is None:
            raise NetworkError(f"There is no bridge {each.bridge}")
        if bridge is not None and bridge.kind not in {"bridge", "openvswitch"}:
            raise NetworkError(f"{each.bridge} is not a bridge")
