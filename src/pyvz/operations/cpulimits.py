"""The limits of a container on this very node: MHz become percent, a number of CPUs certain CPUs.

CPUS=N is a quota of N CPUs (model/config_limits.py), and the container is kept on N processors, so
that `nproc` inside and every program that counts its CPUs find N.  Which ones: those that the
fewest others are kept on, of one NUMA node where it has enough; a container that has its N keeps
them.  CPUMASK says of which to choose.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from pyvz.linux import numa, processors
from pyvz.model.config import Config
from pyvz.model.config_limits import limits_of
from pyvz.model.limits import Limits
from pyvz.operations.node import Node


def limits(node: Node, uuid: str, config: Config) -> Limits:
    """Return the limits that CONFIG means for the container here and now."""
    found = limits_of(config, cpus=os.cpu_count() or 1, mhz=processors.mhz())
    allowed = processors.usable()
    if config.cpu.mask not in ("", "auto", "all"):
        allowed &= processors.parse(config.cpu.mask)
    if not 0 < config.cpu.cpus < len(allowed):
        return found
    now = processors.parse(node.cgroups.cpus(uuid) or "")
    places = [processors.parse(each.cpus) for each in numa.nodes()]
    chosen = choose(config.cpu.cpus, allowed, now, load=_load(node, uuid), places=places)
    return found._replace(cpus=processors.render(chosen))


def choose(
    count: int,
    allowed: frozenset[int],
    now: frozenset[int],
    *,
    load: Mapping[int, float],
    places: Iterable[frozenset[int]] = (),
) -> frozenset[int]:
    """Return COUNT of the ALLOWED processors (pure).

    now: where it is kept at present; those stay as far as they can.  load: how many containers are
    kept on each.  places: the processors of each NUMA node.
    """
    if len(now) == count and now <= allowed:
        return now
    kept = now & allowed if len(now) < len(allowed) else frozenset()
    homes = [place & allowed for place in places if len(place & allowed) >= count]
    home = min(homes, key=lambda place: _average(place, kept, load), default=allowed)
    order = sorted(home, key=lambda cpu: (cpu not in kept, load.get(cpu, 0.0), cpu))
    return frozenset(order[:count])


def _average(
    place: frozenset[int], kept: frozenset[int], load: Mapping[int, float]
) -> tuple[int, float, int]:
    used = sum(load.get(cpu, 0.0) for cpu in place) / len(place)
    return -len(place & kept), used, min(place)


def _load(node: Node, uuid: str) -> dict[int, float]:
    """Return for each processor how many other containers are kept on it, each counting once."""
    everywhere = len(processors.usable())
    load: dict[int, float] = {}
    for name in node.cgroups.names() - {uuid}:
        with suppress(OSError):  # it has just gone
            kept = processors.parse(node.cgroups.cpus(name) or "")
            for cpu in kept if 0 < len(kept) < everywhere else ():
                load[cpu] = load.get(cpu, 0.0) + 1.0 / len(kept)
    return load
