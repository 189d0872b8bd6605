"""Shares, quotas and nodes in a domain's XML: cputune, blkiotune, numatune; written and read.

    cputune/shares                      --cpuunits
    cputune/global_quota (and period)   --cpulimit, for all processors; quota: for each
    blkiotune/weight                    --ioprio: 100 to 800 are 0 to 7
    numatune/memory nodeset             --nodemask, strictly

What a description does not say stays as it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from pyvz.gateway import failure
from pyvz.gateway.failure import Failure
from pyvz.model.config import Config

PERIOD: Final = 100_000  # microseconds of one CPU that quotas are shown for
_STEP: Final = 100  # of weights
_MOST_WEIGHT: Final = 1000
_EVERYWHERE: Final = {"", "all", "auto"}


class Tuning(NamedTuple):
    """What is asked for; None: nothing is said.  limit: percent of one processor, 0: none."""

    shares: int | None = None
    limit: int | None = None
    priority: int | None = None
    nodes: str | None = None


def weight_of(priority: int) -> int:
    """Return libvirt's weight of disk traffic for a priority of ours."""
    return _STEP + priority * _STEP


def priority_of(weight: int) -> int:
    """Return the priority that is nearest to a weight; raises Failure (8)."""
    if not _STEP <= weight <= _MOST_WEIGHT:
        raise Failure(failure.INVALID_ARGUMENT, f"The weight {weight} is not 100 to 1000")
    return min(7, round((weight - _STEP) / _STEP))


def percent_of(quota: int, period: int, cpus: int = 1) -> int:
    """Return a quota in microseconds of each PERIOD, for CPUS, in percent; 0: none."""
    return max(1, quota * cpus * 100 // period) if quota > 0 and period > 0 else 0


def add(top: Element, config: Config) -> None:
    """Add what is set to a description."""
    if config.cpu.units or config.cpu.limit:
        tune = SubElement(top, "cputune")
        if config.cpu.units:
            SubElement(tune, "shares").text = str(config.cpu.units)
        if config.cpu.limit:
            SubElement(tune, "global_period").text = str(PERIOD)
            SubElement(tune, "global_quota").text = str(config.cpu.limit * PERIOD // 100)
    if config.io.priority is not None:
        weight = SubElement(SubElement(top, "blkiotune"), "weight")
        weight.text = str(weight_of(config.io.priority))
    if config.cpu.nodemask not in _EVERYWHERE:
        nodes = str(config.cpu.nodemask)
        SubElement(SubElement(top, "numatune"), "memory", mode="strict", nodeset=nodes)


def read(top: Element, cpus: int) -> Tuning:
    """Return what a description of a domain with so many CPUS asks for; raises Failure."""
    weight, nodes = _number(top, "blkiotune/weight"), top.find("numatune/memory")
    return Tuning(
        shares=_number(top, "cputune/shares") or None,
        limit=_limit(top, cpus),
        priority=None if weight is None else priority_of(weight),
        nodes=None if nodes is None else nodes.get("nodeset") or "all",
    )


def _limit(top: Element, cpus: int) -> int | None:
    for prefix, count in (("global_", 1), ("", max(1, cpus))):
        quota = _number(top, f"cputune/{prefix}quota")
        if quota is not None:
            period = _number(top, f"cputune/{prefix}period") or PERIOD
            return percent_of(quota, period, count)
    return None


def _number(top: Element, path: str) -> int | None:
    text = (top.findtext(path) or "").strip()
    if not text:
        return None
    if not text.removeprefix("-").isdecimal() or not text.isascii():
        raise Failure(failure.XML, f"<{path}>: '{text}' is no number")
    return int(text)


def options(wanted: Tuning, config: Config | None = None) -> list[tuple[str, str | None]]:
    """Return the options of `prlctl set` that make it so, of what CONFIG has not yet."""
    there = None if config is None else Tuning(
        config.cpu.units, config.cpu.limit or 0, config.io.priority, config.cpu.nodemask or "all"
    )  # fmt: skip
    words = dict(zip(Tuning._fields, ("cpuunits", "cpulimit", "ioprio", "nodemask"), strict=True))
    return [
        (words[name], str(value))
        for name, value in wanted._asdict().items()
        if value is not None and (there is None or value != getattr(there, name))
    ]
