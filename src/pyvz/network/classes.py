"""Traffic classes: networks of the world that are shaped and counted together.

<etc>/conf/networks_classes has a class (0 to 15) and a network on each line; the longest prefix
that holds the other end's address decides.  Class 1 is everything that no line names; class 0 is
counted and never shaped (the node's own surroundings), as in the original.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import NamedTuple

from pyvz.errors import BadValue, ConfigError

REST = 1
LAST = 15
MAX_LINES = 10000
DEFAULT = """\
# Classes of network traffic: CLASS NETWORK
# A packet belongs to the class of the most specific network that the other end is in.
# Class 0 is counted and never shaped; class 1 is the rest of the world.
1 0.0.0.0/0
1 ::/0
"""


class TrafficClass(NamedTuple):
    """A class of traffic and one of its networks ("10.0.0.0/8")."""

    number: int
    network: str


class Span(NamedTuple):
    """Addresses from first to last, both included, that are of one class."""

    first: str
    last: str
    number: int


def parse(text: str, source: str = "networks_classes") -> tuple[TrafficClass, ...]:
    """Return the classes of a file; ConfigError names the line."""
    found: list[TrafficClass] = []
    for row, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found.append(parse_class(":".join(words)))
        except BadValue as error:
            raise ConfigError(f"{source}, line {row}: {error.message}") from error
        if len(found) > MAX_LINES:
            raise ConfigError(f"{source} has more than {MAX_LINES} networks")
    return tuple(found)


def parse_class(text: str) -> TrafficClass:
    """Return what ``CLASS:CIDR`` stands for; raises BadValue."""
    number, _, network = text.partition(":")
    if not network or not number.isdecimal() or int(number) > LAST:
        raise BadValue(f"'{text}' is not of the form CLASS:NETWORK (class 0 to {LAST})")
    try:
        return TrafficClass(int(number), str(ip_network(network)))
    except ValueError as error:
        raise BadValue(f"'{network}' is not a network (like 10.0.0.0/8)") from error


def spans(classes: tuple[TrafficClass, ...], version: int) -> tuple[Span, ...]:
    """Return which addresses belong to which class: the whole of IPv4 or IPv6, without overlap.

    What no network names is class 1.  Of two equal networks the later line counts.
    """
    whole = ip_network("0.0.0.0/0" if version == 4 else "::/0")
    networks = {whole: REST}
    networks |= {
        network: each.number
        for each in classes
        if (network := ip_network(each.network)).version == version
    }
    edges: dict[int, int] = {}
    end = int(whole.broadcast_address) + 1
    # From the widest to the narrowest: each writes over what is there, and what was there goes on
    # behind it.  Networks are nested or apart, so a stack of open ones is enough.
    opened: list[tuple[int, int]] = []
    for network in sorted(networks, key=lambda x: (int(x.network_address), x.prefixlen)):
        first, behind = int(network.network_address), int(network.broadcast_address) + 1
        while opened and opened[-1][0] <= first:
            done, _ = opened.pop()
            if opened:
                edges[done] = opened[-1][1]
        opened.append((behind, networks[network]))
        edges[first] = networks[network]
    while len(opened) > 1:
        done, _ = opened.pop()
        edges[done] = opened[-1][1]
    return _joined(edges, end, version)


def _joined(edges: dict[int, int], end: int, version: int) -> tuple[Span, ...]:
    starts = sorted(edge for edge in edges if edge < end)
    kept: list[tuple[int, int]] = []
    for start in starts:
        if not kept or kept[-1][1] != edges[start]:
            kept.append((start, edges[start]))
    ends = [start - 1 for start, _ in kept[1:]] + [end - 1]
    return tuple(
        Span(_text(start, version), _text(last, version), number)
        for (start, number), last in zip(kept, ends, strict=True)
    )


def _text(number: int, version: int) -> str:
    return str(ip_address(number.to_bytes(4 if version == 4 else 16)))
