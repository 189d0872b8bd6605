"""Options that speak of one interface: `--device-add net --mac ...`, `--ifname eth0 --ipadd ...`.

Values only.  An option that names an interface begins to speak of it; what follows and belongs to
an interface changes that one.  Everything else is left for options.py.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

from pyvz.errors import BadValue, NotFound, Unsupported, UsageError
from pyvz.model import grammar_firewall, params
from pyvz.model.config import Config
from pyvz.model.grammar_firewall import Firewall
from pyvz.model.grammar_net import NetIf, NetIfs, check_ifname
from pyvz.model.param import Option, normal
from pyvz.network.base import (
    MAC_PREFIX,
    MACHINE_PREFIX,
    ROUTED,
    card_mac,
    host_mac_of,
    host_name_of,
    routed_name_of,
    tap_name_of,
)

Given = Sequence[tuple[str, str | None]]

_FIELD = "network.interfaces"
_NETIFS = NetIfs()
_NET = re.compile(r"net(\d{1,4})")
_FILTERS = "network.firewalls"
_OF_FILTER = frozenset({"fw", "fw-policy", "fw-direction", "fw-rule"})
_OF_ROUTED = frozenset({"ipadd", "ipdel", "ipset"})  # of venet0 they mean IP_ADDRESS
_NAMES = frozenset(
    {"device-add", "device-set", "device-del", "device-connect", "device-disconnect"}
    | {"ifname", "netif-add", "netif-del", "netif-mac-renew"}
)


class Taken(NamedTuple):
    """What the options about interfaces meant.

    config: with them.  rest: the options that are left.  echo: a line per change.  worn: hardware
    addresses that are to be given up.
    """

    config: Config
    rest: tuple[tuple[str, str | None], ...]
    fields: tuple[str, ...] = ()
    echo: tuple[str, ...] = ()
    worn: tuple[str, ...] = ()


def take(config: Config, dialect: str, given: Given) -> Taken:
    """Return what is left of GIVEN and the new CONFIG; raises UsageError, BadValue, NotFound."""
    reader = _Reader(dialect, cards(config))
    for name, text in given:
        reader.read(name, text)
    reader.check()
    if not reader.echo:
        return Taken(config, tuple(reader.rest))
    routed = [each for each in config.network.interfaces if each.ifname == ROUTED]
    changes: dict[str, Any] = {_FIELD: (*routed, *reader.cards)}
    filters = reader.filters(config)
    if filters != config.network.firewalls:
        changes[_FILTERS] = filters
    return Taken(
        config.changed(changes),
        tuple(reader.rest),
        tuple(changes),
        tuple(reader.echo),
        tuple(reader.worn),
    )


def cards(config: Config) -> list[NetIf]:
    """Return the interfaces that are called net0, net1, ...: all but venet0."""
    return [each for each in config.network.interfaces if each.ifname != ROUTED]


def with_macs(config: Config, uuid: str, taken: Container[str], *, machine: bool = False) -> Config:
    """Return CONFIG with hardware addresses and names for the cards that nobody gave them.

    taken: hardware addresses of others.  machine: the cards are a virtual machine's.  Raises
    BadValue when one is used twice.
    """
    prefix = MACHINE_PREFIX if machine else MAC_PREFIX
    made: list[NetIf] = []
    for each in config.network.interfaces:
        netif = each
        if each.ifname != ROUTED:
            if each.mac in taken:
                raise BadValue(f"The hardware address {each.mac} is in use by another one")
            mac = each.mac or card_mac(uuid, each.ifname, taken, prefix)
            netif = each._replace(
                mac=mac,
                host_mac=each.host_mac or host_mac_of(mac),
                host_ifname=each.host_ifname or _host_name(each, mac, machine=machine),
            )
        made.append(netif)
    return config.changed({_FIELD: tuple(made)})


def _host_name(netif: NetIf, mac: str, *, machine: bool) -> str:
    if machine:
        return tap_name_of(mac)
    return routed_name_of(mac) if netif.type == "routed" else host_name_of(mac)


class _FilterOptions(NamedTuple):
    """The options about the filter of one interface, in their order."""

    ifname: str
    given: list[tuple[str, str]]


class _Reader:
    """Reads options in their order; `current` is the card that they speak of."""

    def __init__(self, dialect: str, netifs: list[NetIf]) -> None:
        self.cards = netifs
        self.rest: list[tuple[str, str | None]] = []
        self.echo: list[str] = []
        self.worn: list[str] = []
        self._dialect = dialect
        self._before = list(netifs)
        self._current: str | None = None
        self._adding = False
        self._seen: set[str] = set()  # options given for the current one
        self._filters: list[_FilterOptions] = []

    def read(self, name: str, text: str | None) -> None:
        """Take one option, or leave it in `rest`."""
        key = normal(name)
        if key in _NAMES and self._name(key, text or ""):
            return
        option = None if self._current is None else self._option(name)
        if option is None or (self._current == ROUTED and key in _OF_ROUTED):
            self.rest.append((name, text))
            return
        if key in _OF_FILTER and self._current is not None:
            self._filter(self._current, key, text)
            return
        if self._current == ROUTED:
            raise Unsupported(f"--{key} is not an option of {ROUTED}")
        again = key == "ipset" and key in self._seen
        merge = self._option("ipadd") if again else option
        index = self._index(self._current or "")
        if option.metavar and text is None:
            raise BadValue(f"--{option.name} needs a value: {option.metavar}")
        self.cards[index] = (merge or option).value(None, self.cards[index], text)
        self._seen.add(key)
        self._say(name, text)

    def check(self) -> None:
        """Refuse what does not go together, and names that are there twice."""
        for each in self.cards:
            if each.network and each.type == "routed":
                raise UsageError("--network is for bridged interfaces; --type routed has none")
        macs = [each.mac for each in self.cards if each.mac]
        if len(set(macs)) < len(macs):
            raise BadValue("Two interfaces have the same hardware address")

    def filters(self, config: Config) -> tuple[Firewall, ...]:
        """Return the filters of the interfaces that are left, as the options said."""
        names = {ROUTED, *(each.ifname for each in self.cards)}
        made = tuple(each for each in config.network.firewalls if each.ifname in names)
        for group in self._filters:
            old = grammar_firewall.find(made, group.ifname)
            new = grammar_firewall.change(old, group.given)
            made = grammar_firewall.replaced(made, new)
        return made

    def _filter(self, ifname: str, key: str, text: str | None) -> None:
        """Collect; the options of one interface mean something together only."""
        if text is None:
            raise BadValue(f"--{key} needs a value")
        if not self._filters or not _OF_FILTER & self._seen:
            self._filters.append(_FilterOptions(ifname, []))
        self._filters[-1].given.append((key, text))
        self._seen.add(key)
        self._say(key, text)

    def _option(self, name: str) -> Option | None:
        try:
            _, option = params.by_option(self._dialect, name, "netif")
        except UsageError:
            return None
        return option if option.scope == "netif" else None

    def _name(self, key: str, text: str) -> bool:
        """Take an option that names a device; False: it is not one of ours."""
        self._seen = set()
        if key == "device-add" and text == "net":
            self._add(NetIf(self._free_name()))
            self._adding = True
        elif key in {"netif-add", "netif-del"}:
            self._shorthand(key, text)
        elif key == "netif-mac-renew":
            self._renew()
        elif key == "ifname" and self._adding:
            self._rename(text)
        elif key == "ifname":
            self._select(text)
            return True
        elif _NET.fullmatch(text) or text == ROUTED:
            return self._device(key, text)
        else:
            self._current = None
            return False
        self._say(key, text)
        return True

    def _device(self, key: str, text: str) -> bool:
        if text == ROUTED and key != "device-set":
            raise Unsupported(f"{ROUTED} is there as long as it has addresses; use --ipdel")
        name = text if text == ROUTED else self._nth(text)
        if key == "device-set":
            self._select(name)
            return True
        index = self._index(name)
        if key == "device-del":
            del self.cards[index]
        else:
            connected = key == "device-connect"
            self.cards[index] = self.cards[index]._replace(connected=connected)
        self._current = None
        self._say(key, text)
        return True

    def _shorthand(self, key: str, text: str) -> None:
        if key == "netif-add":
            self.cards = list(_NETIFS.add(tuple(self.cards), text))
            self._current = self.cards[-1].ifname
        else:
            self.cards = list(_NETIFS.remove(tuple(self.cards), text))
            self._current = None
        self._adding = False

    def _renew(self) -> None:
        """Forget every hardware address and what is made of it; with_macs chooses others."""
        self.worn += [each.mac for each in self.cards if each.mac]
        self.cards = [each._replace(mac="", host_mac="", host_ifname="") for each in self.cards]
        self._current = None

    def _add(self, netif: NetIf) -> None:
        self.cards.append(netif)
        self._current = netif.ifname

    def _select(self, name: str) -> None:
        if name != ROUTED:
            self._index(name)
        self._current, self._adding = name, False

    def _rename(self, text: str) -> None:
        name = check_ifname(text)
        if name == ROUTED or any(each.ifname == name for each in self.cards):
            raise BadValue(f"There is an interface {name} already")
        index = self._index(self._current or "")
        self.cards[index] = self.cards[index]._replace(ifname=name)
        self._filters = [
            each._replace(ifname=name) if each.ifname == self._current else each
            for each in self._filters
        ]
        self._current = name

    def _nth(self, text: str) -> str:
        """The name of net0, net1, ... as they were when the call began."""
        number = int(text.removeprefix("net"))
        if number >= len(self._before):
            raise NotFound(f"There is no device {text}")
        return self._before[number].ifname

    def _index(self, name: str) -> int:
        for index, each in enumerate(self.cards):
            if each.ifname == name:
                return index
        raise NotFound(f"There is no interface {name}")

    def _free_name(self) -> str:
        names = {each.ifname for each in self.cards}
        return next(name for n in range(len(names) + 1) if (name := f"eth{n}") not in names)

    def _say(self, name: str, text: str | None) -> None:
        key = normal(name)
        self.echo.append(f"set {key} {text}" if text else f"set {key}")
