"""FIREWALL: the packet filter of each interface, on the node's side (a key of pyvz).

The original keeps these rules outside ve.conf; here they are one key, so that they travel with the
container.  Interfaces are joined by ``;``, each is ``k=v`` pairs joined by ``,``, as in NETIF:

    FIREWALL="ifname=venet0,fw=on,in=deny,in_rule=tcp * 22 10.0.0.0/8 *;ifname=eth0,fw=off"

A rule is "PROTO LOCAL_IP LOCAL_PORT REMOTE_IP REMOTE_PORT"; ``*`` (or 0) stands for any.  It says
the opposite of its direction's policy: what is let in although the rest is denied, or the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network
from typing import NamedTuple

from pyvz.errors import BadValue, UsageError
from pyvz.model.grammar_net import check_ifname

ANY = "*"
MAX_RULES = 1000  # of one direction; each is looked at for each new connection
DIRECTIONS = ("in", "out")
POLICIES = ("accept", "deny")
PROTOCOLS = (ANY, "tcp", "udp", "icmp")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class FirewallRule(NamedTuple):
    """One rule.  protocol: of PROTOCOLS; addresses: network or ``*``; ports: N, N-M or ``*``."""

    protocol: str
    local: str
    local_port: str
    remote: str
    remote_port: str

    def __str__(self) -> str:
        return " ".join(self)


class Side(NamedTuple):
    """What holds for one direction."""

    policy: str = "accept"
    rules: tuple[FirewallRule, ...] = ()


class Firewall(NamedTuple):
    """The filter of one interface; with enabled=False everything passes."""

    ifname: str
    enabled: bool = False
    incoming: Side = Side()
    outgoing: Side = Side()


class Firewalls:
    """FIREWALL."""

    def parse(self, text: str) -> tuple[Firewall, ...]:
        """Return the filters; BadValue names the part that cannot be understood."""
        found = [_parse_one(part) for part in text.split(";") if part.strip()]
        return tuple({each.ifname: each for each in found}.values())

    def format(self, value: tuple[Firewall, ...]) -> str:
        """Return the stored text; an interface about which nothing is said is left out."""
        return ";".join(_format_one(each) for each in value if each != Firewall(each.ifname))


def find(value: Sequence[Firewall], ifname: str) -> Firewall:
    """Return the filter of an interface; one that is off when nothing is said about it."""
    return next((each for each in value if each.ifname == ifname), Firewall(ifname))


def replaced(value: Sequence[Firewall], new: Firewall) -> tuple[Firewall, ...]:
    """Return VALUE with the filter of one interface set to NEW."""
    return tuple(({each.ifname: each for each in value} | {new.ifname: new}).values())


def change(old: Firewall, given: Sequence[tuple[str, str]]) -> Firewall:
    """Return OLD as the options of one interface say: (fw | fw-policy | fw-direction | fw-rule).

    The order of the options does not count, except among rules.  Rules replace those of their
    direction; an empty one clears them.  Raises BadValue; UsageError without a direction.
    """
    named = {name: text.strip() for name, text in given}
    rules = [text.strip() for name, text in given if name == "fw-rule"]
    if "fw" in named:
        old = old._replace(enabled=_one_of("--fw", named["fw"], ("on", "off")) == "on")
    if "fw-direction" not in named:
        if rules or "fw-policy" in named:
            raise UsageError("--fw-policy and --fw-rule need --fw-direction in or out")
        return old
    direction = _one_of("--fw-direction", named["fw-direction"], DIRECTIONS)
    if not rules and "fw-policy" not in named:
        raise UsageError("--fw-direction needs --fw-policy or --fw-rule")
    side = old.incoming if direction == "in" else old.outgoing
    if "fw-policy" in named:
        side = side._replace(policy=_one_of("--fw-policy", named["fw-policy"], POLICIES))
    if rules:
        side = side._replace(rules=tuple(parse_rule(text) for text in rules if text))
    if len(side.rules) > MAX_RULES:
        raise BadValue(f"--fw-rule: an interface has at most {MAX_RULES} rules per direction")
    return old._replace(incoming=side) if direction == "in" else old._replace(outgoing=side)


def parse_rule(text: str) -> FirewallRule:
    """Return the rule that TEXT stands for; raises BadValue."""
    words = text.split()
    if len(words) != 5:
        raise BadValue(
            f"'{text}' is not a rule",
            hint='Give "PROTO LOCAL_IP LOCAL_PORT REMOTE_IP REMOTE_PORT", like "tcp * 22 * *".',
        )
    protocol = ANY if words[0] in {ANY, "0", "any"} else words[0].lower()
    if protocol not in PROTOCOLS:
        raise BadValue(f"'{text}': '{words[0]}' is not one of {', '.join(PROTOCOLS)}")
    local, remote = _network(words[1], text), _network(words[3], text)
    if ANY not in {local, remote} and (":" in local) != (":" in remote):
        raise BadValue(f"'{text}': one address is of IPv4 and the other of IPv6")
    ports = _ports(words[2], text), _ports(words[4], text)
    if ports != (ANY, ANY) and protocol not in {"tcp", "udp"}:
        raise BadValue(f"'{text}': only tcp and udp have ports")
    return FirewallRule(protocol, local, ports[0], remote, ports[1])


def _network(word: str, text: str) -> str:
    if word in {ANY, "0"}:
        return ANY
    try:
        network = ip_network(word, strict=False)
    except ValueError as error:
        raise BadValue(f"'{text}': '{word}' is not an address or network") from error
    alone = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if alone else str(network)


def _ports(word: str, text: str) -> str:
    if word in {ANY, "0"}:
        return ANY
    match = _PORTS.fullmatch(word)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise BadValue(f"'{text}': '{word}' is not a port or a range of ports (1 to 65535)")
    return str(first) if first == last else f"{first}-{last}"


def _one_of(option: str, word: str, words: Sequence[str]) -> str:
    if word.lower() not in words:
        raise BadValue(f"{option}: '{word}' is not one of {', '.join(words)}")
    return word.lower()


def _parse_one(text: str) -> Firewall:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or pairs[0][0] != "ifname":
        raise BadValue(f"'{text}' does not begin with ifname=")
    firewall = Firewall(check_ifname(pairs[0][2]))
    sides = {name: Side() for name in DIRECTIONS}
    for key, _, value in pairs[1:]:
        name = key.removesuffix("_rule")
        if key == "fw":
            firewall = firewall._replace(enabled=_one_of("fw", value, ("on", "off")) == "on")
        elif key in sides:
            sides[key] = sides[key]._replace(policy=_one_of(key, value, POLICIES))
        elif name in sides:
            sides[name] = sides[name]._replace(rules=(*sides[name].rules, parse_rule(value)))
        else:
            raise BadValue(f"'{key}' is not one of fw, in, out, in_rule, out_rule")
    return firewall._replace(incoming=sides["in"], outgoing=sides["out"])


def _format_one(value: Firewall) -> str:
    pairs = [f"ifname={value.ifname}", f"fw={'on' if value.enabled else 'off'}"]
    for name, side in (("in", value.incoming), ("out", value.outgoing)):
        pairs += [f"{name}={side.policy}"] if side.policy != "accept" else []
        pairs += [f"{name}_rule={rule}" for rule in side.rules]
    return ",".join(pairs)
