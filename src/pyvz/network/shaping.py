"""Shaping: who may send and receive how much of each class of traffic.  Values only.

Two trees of HTB (tc-htb(8)), both without a classifier of tc: nftables puts the class into the
packet's priority, which HTB looks at first (htb_classify, net/sched/sch_htb.c).

    from containers     one device (ifb) per node, through which their packets pass before the
                        node sees them; so what all of them send together is bounded
      1:ffff  BANDWIDTH
        1:c     TOTALRATE of class c           1:fff0 for class 0 is never made
          1:sc    RATE of the container in slot s; its ceiling is TOTALRATE, or RATE itself with
                  RATEBOUND
    to a container      the node's end of each of its interfaces: 1:1c with the same rates

A class without a rate anywhere, and class 0, are not shaped.  Rates are in kbit/s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pyvz.errors import BadValue
from pyvz.linux.netlink import HtbRate
from pyvz.model.grammar_list import Rate, Rates
from pyvz.model.vzconf import NodeConfig

ROOT = 0xFFFF
LAST_SLOT = 0xFFE
SMALLEST = 8  # kbit/s: what the original guarantees where nothing is said (RATE of vz.conf)
LARGEST = 34_000_000  # kbit/s: more does not fit TCA_HTB_PARMS (32 bits of bytes per second)
EVERY = "*"
_TOTAL = re.compile(r"([^\s/:,;=]{1,15}|\*):(\d{1,2}):(\d{1,10}):(\d{1,10})")
_BANDWIDTH = re.compile(r"([^\s/:,;=]{1,15}):(\d{1,10})")


class Policy(NamedTuple):
    """What vz.conf says.

    on: TRAFFIC_SHAPING.  bandwidth: of the node, 0 unknown.  totals: of all containers, by class.
    rates: a container's share where it has none of its own, by class.  minimum: RATEMPU, bytes that
    a packet counts at least.
    """

    on: bool = False
    bandwidth: int = 0
    totals: Mapping[int, int] = {}
    rates: Mapping[int, int] = {}
    minimum: int = 0


def policy(config: NodeConfig, uplink: str = "") -> Policy:
    """Return the node's policy; raises BadValue for a malformed list.

    uplink: the device by which the node reaches the world; entries of other devices do not count,
    since containers reach the world by this one.  ``*`` counts for every device.
    """
    bandwidths = dict(_bandwidths(config.bandwidth))
    return Policy(
        config.traffic_shaping,
        bandwidths.get(uplink, 0) or (min(bandwidths.values()) if bandwidths else 0),
        _by_class(config.totalrate, uplink),
        _by_class(config.rate, uplink),
        _by_class(config.ratempu, uplink).get(1, 0),
    )


def parse_entry(text: str) -> tuple[Rate, Rate]:
    """Return (TOTALRATE, RATE) of ``DEV:CLASS:TOTALRATE:RATE``; raises BadValue."""
    match = _TOTAL.fullmatch(text)
    if match is None or int(match[2]) > 15:
        raise BadValue(f"'{text}' is not of the form DEVICE:CLASS:TOTALRATE:RATE")
    device, number = match[1], int(match[2])
    return Rate(device, number, int(match[3])), Rate(device, number, int(match[4]))


def parse_bandwidth(text: str) -> tuple[str, int]:
    """Return the device and kbit/s of ``DEV:BANDWIDTH``; raises BadValue."""
    match = _BANDWIDTH.fullmatch(text)
    if match is None:
        raise BadValue(f"'{text}' is not of the form DEVICE:KBITS")
    return match[1], int(match[2])


def limits(
    policy: Policy, rates: Iterable[Rate], *, bound: bool, uplink: str = ""
) -> dict[int, tuple[int, int]]:
    """Return (guarantee, ceiling) in kbit/s of each class of a container that is shaped."""
    own = _chosen(rates, uplink)
    found: dict[int, tuple[int, int]] = {}
    for number in sorted({*policy.totals, *own} - {0}):
        total = policy.totals.get(number, 0)
        rate = own.get(number) or policy.rates.get(number, 0)
        ceil = rate if bound and rate else total or policy.bandwidth or LARGEST
        rate = min(rate or SMALLEST, ceil)
        found[number] = (_clamped(rate), _clamped(ceil))
    return found


def node_tree(policy: Policy) -> tuple[HtbRate, ...]:
    """Return the classes that all containers share, parents first."""
    top = _clamped(policy.bandwidth or LARGEST)
    shared = [
        HtbRate(number, ROOT, min(_clamped(total), top), min(_clamped(total), top))
        for number, total in sorted(policy.totals.items())
        if number
    ]
    return (HtbRate(ROOT, 0, top, top), *shared)


def sending(
    policy: Policy, limits: Mapping[int, tuple[int, int]], slot: int
) -> tuple[HtbRate, ...]:
    """Return the leaves of one container in the node's tree."""
    return tuple(
        HtbRate(minor(slot, number), number if policy.totals.get(number) else ROOT, rate, ceil)
        for number, (rate, ceil) in limits.items()
    )


def receiving(limits: Mapping[int, tuple[int, int]]) -> tuple[HtbRate, ...]:
    """Return the tree on the node's end of an interface."""
    if not limits:
        return ()
    top = max(ceil for _, ceil in limits.values())
    leaves = (HtbRate(minor(1, n), ROOT, rate, ceil) for n, (rate, ceil) in limits.items())
    return (HtbRate(ROOT, 0, top, top), *leaves)


def minor(slot: int, number: int) -> int:
    """Return the minor number of a container's class."""
    if not 1 <= slot <= LAST_SLOT:
        raise BadValue(f"{slot} containers cannot be shaped at once")
    return slot << 4 | number


def priority(slot: int, number: int, limits: Mapping[int, tuple[int, int]]) -> str:
    """Return what nftables writes into a packet of the class; 0 means not shaped (the qdisc)."""
    return f"1:{minor(slot, number):x}" if number in limits else "1:0"


def slot_for(uuid: str, taken: Mapping[str, int]) -> int:
    """Return the slot of a container: its own, or the lowest that is free; raises BadValue."""
    if uuid in taken:
        return taken[uuid]
    used = set(taken.values())
    free = next((slot for slot in range(1, LAST_SLOT + 1) if slot not in used), 0)
    minor(free, 0)
    return free


def _by_class(text: str, uplink: str) -> dict[int, int]:
    return _chosen(Rates().parse(text), uplink)


def _chosen(rates: Iterable[Rate], uplink: str) -> dict[int, int]:
    """Of each class the rate for the uplink, else the one for every device."""
    listed = list(rates)
    found = {each.traffic_class: each.kbits for each in listed if each.device == EVERY}
    return found | {each.traffic_class: each.kbits for each in listed if each.device == uplink}


def _bandwidths(text: str) -> Iterable[tuple[str, int]]:
    """BANDWIDTH is a list of DEVICE:KBITS; a device alone says nothing of its speed."""
    return (parse_bandwidth(word) for word in re.findall(r"[^\s,]+", text) if ":" in word)


def _clamped(kbits: int) -> int:
    return max(SMALLEST, min(kbits, LARGEST))
