"""A card of the node in a bridge: its addresses and routes go along, and come back.

What the card had is written down first (<run>/networks/<uuid>.card), so that whoever dies in
between is followed by somebody who can finish: addresses are put where they shall be before they
are taken where they were, and a route is set as long as the record says that there was one.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import NetworkError
from pyvz.linux.file import write_atomic
from pyvz.linux.netlink import Link, Netlink, Route


class Card(NamedTuple):
    """What a card had of its own when it was put into a bridge."""

    name: str
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()

    def to_json(self) -> str:
        """As it is kept."""
        return json.dumps([self.name, self.addresses, [asdict(each) for each in self.routes]])

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what to_json has written; ValueError or TypeError for anything else."""
        name, addresses, routes = json.loads(text)
        return cls(name, tuple(addresses), tuple(Route(**each) for each in routes))


def recorded(path: Path) -> Card | None:
    """Return the card of a record; None when there is no record."""
    try:
        return Card.from_json(path.read_text())
    except (FileNotFoundError, ValueError, TypeError):
        return None


def move(netlink: Netlink, card: Link, bridge: Link, record: Path) -> None:
    """Put CARD into BRIDGE, with its addresses and routes; raises NetworkError, all as before then.

    Idempotent; finishes what somebody has left half done.
    """
    leased = netlink.leased(card.index)
    if leased:
        raise NetworkError(
            f"{card.name} has the address {leased[0]} from a DHCP server",
            hint="Its DHCP client must run on the bridge: make the bridge with the "
            "distribution's own network configuration.",
        )
    before = _merged(recorded(record), _state(netlink, card))
    record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(record, before.to_json(), 0o600)
    with ExitStack() as undo:
        undo.callback(restore, netlink, card, bridge, record)
        netlink.set_link(bridge.index, state="up")
        netlink.set_link(card.index, master=bridge.index, state="up")
        _put(netlink, before, card, bridge)
        undo.pop_all()


def restore(netlink: Netlink, card: Link, bridge: Link, record: Path) -> None:
    """Take CARD out of BRIDGE and give back what it had; idempotent."""
    had = recorded(record)
    netlink.set_link(card.index, master=0)
    if had is not None:
        _put(netlink, had, bridge, card)
    record.unlink(missing_ok=True)


def _state(netlink: Netlink, card: Link) -> Card:
    own = [each for each in netlink.addresses() if each.index == card.index and each.scope == 0]
    routes = [each for each in netlink.routes(card.index) if not each.to.startswith("fe80:")]
    return Card(card.name, tuple(each.address for each in own), tuple(routes))


def _merged(old: Card | None, now: Card) -> Card:
    if old is None or old.name != now.name:
        return now
    return Card(
        now.name,
        tuple(dict.fromkeys((*old.addresses, *now.addresses))),
        tuple(dict.fromkeys((*old.routes, *now.routes))),
    )


def _put(netlink: Netlink, had: Card, source: Link, target: Link) -> None:
    """Give TARGET what SOURCE had: at no time is an address nowhere."""
    present = {each.address for each in netlink.addresses() if each.index == target.index}
    for address in had.addresses:
        if address not in present:
            netlink.add_address(target.index, address)
    for address in had.addresses:
        netlink.delete_address(source.index, address)
    # Those without a gateway first: the others need them to reach theirs.
    for route in sorted(had.routes, key=lambda each: bool(each.via)):
        with suppress(NetworkError):
            netlink.delete_route(replace(route, index=source.index))
        netlink.replace_route(replace(route, index=target.index))
