"""The thin doer of virtual networks: brings links and addresses to a Shape, and takes them away.

Every step may be repeated, and everything that was half done by somebody who died is finished.
What is ours is known by its alias; a link that was made and not named yet (we died in between) by
the hardware address that only this network has.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path

from pyvz.errors import AlreadyExists, NetworkError, NetworkInUse, Unsupported
from pyvz.linux.netlink import Link, Netlink, set_sysctl, sysctl
from pyvz.model.virtualnet import bridge_mac
from pyvz.network import uplink
from pyvz.network.virtualnet import Port, Shape, alias
from pyvz.store.paths import Paths

FILTERED_BRIDGES = {  # by family of tables
    "ip": "net/bridge/bridge-nf-call-iptables",
    "ip6": "net/bridge/bridge-nf-call-ip6tables",
}
_MISSING = ("Operation not supported", "Unknown error 524")


class Bridges:
    """The links of the virtual networks of one node."""

    def __init__(self, paths: Paths) -> None:
        self._instance = paths.instance
        self._records = paths.run / "networks"

    def up(self, shape: Shape, old: Shape | None = None) -> None:
        """Bring the node to SHAPE; old: what it had before, for what is there no more.

        Raises NetworkError, AlreadyExists, Unsupported: then what was new is gone again.
        """
        with Netlink() as netlink, ExitStack() as undo:
            if shape.adopted:
                self._adopted(netlink, shape)
                return
            bridge = self._bridge(netlink, shape, undo)
            for port in shape.ports:
                self._plug(netlink, shape, bridge, port, undo)
            self._addresses(netlink, bridge, shape, old)
            if shape.mtu and bridge.mtu != shape.mtu:
                netlink.set_link(bridge.index, mtu=shape.mtu)
            netlink.set_link(bridge.index, state="up")
            if old is not None:
                self._unplug_old(netlink, shape, old, bridge)
            undo.pop_all()

    def down(self, uuid: str, bridge: str, *, adopted: bool = False) -> None:
        """Take the links of a network away, and give a card back what it had; idempotent."""
        if adopted:
            return
        with Netlink() as netlink:
            found = netlink.link(bridge)
            if found is not None and self._is_mine(found, uuid):
                self._release_cards(netlink, uuid, found)
                netlink.delete_link(found.index)
            for link in netlink.links():
                if link.alias == alias(self._instance, uuid):
                    netlink.delete_link(link.index)

    def leftovers(self, known: set[str]) -> list[tuple[str, str]]:
        """Return (uuid, bridge) of the links of ours that belong to no network of KNOWN uuids."""
        prefix = alias(self._instance, "")
        with Netlink() as netlink:
            found = {
                link.alias.removeprefix(prefix): link.name
                for link in sorted(netlink.links(), key=lambda link: link.kind == "bridge")
                if link.alias.startswith(prefix)
            }
        return [(uuid, name) for uuid, name in found.items() if uuid not in known]

    def in_use(self, uuid: str, bridge: str) -> list[str]:
        """Return the ports of the network's bridge that are not the network's own."""
        with Netlink() as netlink:
            found = netlink.link(bridge)
            if found is None or not self._is_mine(found, uuid):
                return []
            card = uplink.recorded(self._record(uuid))
            return [
                link.name
                for link in netlink.links()
                if link.master == found.index
                and link.alias != alias(self._instance, uuid)
                and (link.alias or link.kind in {"veth", "tun"})
                and not (card and card.name == link.name)
            ]

    def reflect(self, bridge: str) -> None:
        """Let every container in a bridge reach itself by a forwarded port.

        Where br_netfilter works, the bridge itself rewrites such a frame and passes it on, and
        without this not to the port that it came from (br_nf_pre_routing_finish, bridged_dnat).
        """
        if "1" not in {sysctl(key) for key in FILTERED_BRIDGES.values()}:
            return
        with Netlink() as netlink:
            found = netlink.link(bridge)
            for link in netlink.links() if found is not None else ():
                if found is not None and link.master == found.index and link.kind == "veth":
                    netlink.set_hairpin(link.index, on=True)

    # -- bridges --------------------------------------------------------------------------------

    def _adopted(self, netlink: Netlink, shape: Shape) -> None:
        if netlink.link(shape.bridge) is None:
            raise NetworkError(
                f"There is no bridge {shape.bridge}",
                hint="It was made by others, and must be there before the network can be used.",
            )

    def _bridge(self, netlink: Netlink, shape: Shape, undo: ExitStack) -> Link:
        found = netlink.link(shape.bridge)
        if found is not None and not self._is_mine(found, shape.uuid):
            raise AlreadyExists(f"There is a network interface {shape.bridge} already")
        if found is None:
            self._away_with_other_names(netlink, shape)
            netlink.add_link("bridge", shape.bridge, address=_first_mac(shape))
            found = netlink.need(shape.bridge)
            undo.callback(self.down, shape.uuid, shape.bridge)
        if found.alias != alias(self._instance, shape.uuid):
            netlink.set_alias(found.index, alias(self._instance, shape.uuid))
        if found.mac != shape.mac:
            netlink.set_link(found.index, address=shape.mac)
        for key, value in _settings(shape):
            set_sysctl(key, value, optional=True)
        return found

    def _away_with_other_names(self, netlink: Netlink, shape: Shape) -> None:
        """Remove what the network had under another name of its bridge."""
        for link in netlink.links():
            if link.kind == "bridge" and link.alias == alias(self._instance, shape.uuid):
                self.down(shape.uuid, link.name)

    def _is_mine(self, link: Link, uuid: str) -> bool:
        if link.kind != "bridge":
            return False
        if link.alias:
            return link.alias == alias(self._instance, uuid)
        return link.mac == bridge_mac(uuid)

    def _addresses(self, netlink: Netlink, bridge: Link, shape: Shape, old: Shape | None) -> None:
        wanted = {str(ip_interface(each)): each for each in shape.addresses}
        present = {each.address for each in netlink.addresses() if each.index == bridge.index}
        for address in old.addresses if old is not None else ():
            if address not in wanted:
                netlink.delete_address(bridge.index, address)
        for address in wanted:
            if address not in present:
                netlink.add_address(bridge.index, address)

    # -- ports ----------------------------------------------------------------------------------

    def _plug(
        self, netlink: Netlink, shape: Shape, bridge: Link, port: Port, undo: ExitStack
    ) -> None:
        if port.kind == "card":
            self._plug_card(netlink, shape, bridge, port.name, undo)
            return
        link = self._own_port(netlink, shape, port, undo)
        below = dict(port.attributes).get("link")
        if below and port.kind == "vlan":  # it cannot be up while its card is not
            netlink.set_link(below, state="up")
        netlink.set_link(link.index, master=bridge.index, state="up")
        if port.kind == "vxlan":
            _connect(netlink, link, port)

    def _plug_card(
        self, netlink: Netlink, shape: Shape, bridge: Link, name: str, undo: ExitStack
    ) -> None:
        card = netlink.need(name)
        if card.master not in {0, bridge.index}:
            raise NetworkError(f"{name} is part of another interface already")
        record = self._record(shape.uuid)
        own = [e for e in netlink.addresses() if e.index == card.index and e.scope == 0]
        if own and not shape.force:
            raise NetworkError(f"{name} has addresses of its own")
        if card.master != bridge.index:
            undo.callback(uplink.restore, netlink, card, bridge, record)
        if shape.force:
            uplink.move(netlink, card, bridge, record)
        else:
            netlink.set_link(card.index, master=bridge.index, state="up")

    def _own_port(self, netlink: Netlink, shape: Shape, port: Port, undo: ExitStack) -> Link:
        found = netlink.link(port.name)
        if found is not None and found.alias not in {"", alias(self._instance, shape.uuid)}:
            raise AlreadyExists(f"There is a network interface {port.name} already")
        if found is not None and found.kind != port.kind:
            raise AlreadyExists(f"There is a network interface {port.name} already")
        if found is not None:
            return found
        try:
            netlink.add_link(port.kind, port.name, **dict(port.attributes))
        except NetworkError as error:
            if any(words in error.message for words in _MISSING):
                raise Unsupported(f"The kernel has no {port.kind.upper()} interfaces") from error
            raise
        made = netlink.need(port.name)
        undo.callback(netlink.delete_link, made.index)
        netlink.set_alias(made.index, alias(self._instance, shape.uuid))
        for key, value in (("disable_ipv6", "1"), ("accept_ra", "0")):
            set_sysctl(f"net/ipv6/conf/{port.name}/{key}", value, optional=True)
        return made

    def _unplug_old(self, netlink: Netlink, shape: Shape, old: Shape, bridge: Link) -> None:
        """Take out the ports that the network had and has no more."""
        names = {port.name for port in shape.ports}
        for port in old.ports:
            link = netlink.link(port.name) if port.name not in names else None
            if link is None:
                continue
            if port.kind == "card":
                if link.master == bridge.index:
                    uplink.restore(netlink, link, bridge, self._record(shape.uuid))
            elif link.alias == alias(self._instance, shape.uuid):
                netlink.delete_link(link.index)

    def _release_cards(self, netlink: Netlink, uuid: str, bridge: Link) -> None:
        had = uplink.recorded(self._record(uuid))
        for link in netlink.links():
            if link.master == bridge.index and had is not None and link.name == had.name:
                uplink.restore(netlink, link, bridge, self._record(uuid))

    def _record(self, uuid: str) -> Path:
        return self._records / f"{uuid}.card"


def _first_mac(shape: Shape) -> str:
    """The address with which a bridge is made: the one by which we know it before its alias."""
    return bridge_mac(shape.uuid)


def _connect(netlink: Netlink, link: Link, port: Port) -> None:
    """Make a VXLAN flood to exactly the nodes of the network."""
    present = set(netlink.floods(link.index))
    for remote in sorted(present - set(port.remotes)):
        netlink.set_flood(link.index, remote, on=False)
    for remote in port.remotes:
        if remote not in present:
            netlink.set_flood(link.index, remote, on=True)


def _settings(shape: Shape) -> list[tuple[str, str]]:
    """Parameters of the bridge: it believes nobody's advertisements, and is there at once."""
    base = f"net/ipv6/conf/{shape.bridge}"
    return [
        (f"{base}/disable_ipv6", "0" if shape.ipv6 else "1"),
        (f"{base}/accept_ra", sysctl(f"{base}/accept_ra") or "1" if shape.force else "0"),
        (f"{base}/autoconf", "1" if shape.force else "0"),
        (f"{base}/accept_dad", "0"),  # without ports there is no carrier, and DAD would not end
    ]


def check_unused(network: str, users: list[str]) -> None:
    """Raise NetworkInUse when somebody is plugged in."""
    if users:
        raise NetworkInUse(
            f"The network {network} is in use",
            details="\n".join(users),
            hint="Move those interfaces to another network first.",
        )
