"""Counting traffic: per class, direction and IP version, kept over restarts of everything.

While a container runs, counters of nftables count; <lib>/traffic/<uuid>.json holds what was counted
before and what was last seen of the present ones:

    {"done": {"in-1-4": [packets, bytes], ...}, "live": {"token": "...", "counters": {...}}}

The token names one life of the counters' table in the kernel: a new table has a new one, and then
what was last seen of the old table is added to what is done.  So whoever writes the file, and
however often, nothing counts twice; a crash of the node loses what came after the last writing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyvz.errors import ConfigError
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.network.classes import LAST
from pyvz.store.paths import Paths

DIRECTIONS = ("in", "out")  # into the container, out of it
Counters = dict[str, tuple[int, int]]  # name -> (packets, bytes)


class Traffic(NamedTuple):
    """What one class has moved: bytes and packets into the container and out of it."""

    number: int
    bytes_in: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    packets_out: int = 0


class Record(NamedTuple):
    """What is kept of a container.  done: counted before; token, live: of the present counters."""

    done: Counters
    token: str
    live: Counters

    def seen(self, token: str, counters: Mapping[str, tuple[int, int]]) -> Record:
        """Return the record after the kernel's counters were read once more."""
        if token == self.token:
            return Record(self.done, token, dict(counters))
        return Record(total(self), token, dict(counters))


EMPTY = Record({}, "", {})


def counter(direction: str, number: int, version: int) -> str:
    """Return the name of a counter."""
    return f"{direction}-{number}-{version}"


def total(record: Record) -> Counters:
    """Return everything that was ever counted."""
    names = {**record.done, **record.live}
    nothing = (0, 0)
    return {
        name: (
            record.done.get(name, nothing)[0] + record.live.get(name, nothing)[0],
            record.done.get(name, nothing)[1] + record.live.get(name, nothing)[1],
        )
        for name in names
    }


def traffic(counters: Mapping[str, tuple[int, int]], *, versions: str = "46") -> list[Traffic]:
    """Return the traffic of each class that has any; versions: "4", "6" or both."""
    found: list[Traffic] = []
    for number in range(LAST + 1):
        sums = dict.fromkeys(DIRECTIONS, (0, 0))
        for direction in DIRECTIONS:
            for version in map(int, versions):
                packets, octets = counters.get(counter(direction, number, version), (0, 0))
                before = sums[direction]
                sums[direction] = (before[0] + packets, before[1] + octets)
        (packets_in, bytes_in), (packets_out, bytes_out) = sums["in"], sums["out"]
        if packets_in or packets_out:
            found.append(Traffic(number, bytes_in, packets_in, bytes_out, packets_out))
    return found


def load(paths: Paths, uuid: str) -> Record:
    """Return what is kept of a container; EMPTY when there is nothing, or nothing readable."""
    try:
        data = json.loads(read_text_limited(_path(paths, uuid)))
        live = data["live"]
        return Record(_counters(data["done"]), str(live["token"]), _counters(live["counters"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return EMPTY


def save(paths: Paths, uuid: str, record: Record) -> None:
    """Write what is known of a container; OSError."""
    path = _path(paths, uuid)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    data = {"done": record.done, "live": {"token": record.token, "counters": record.live}}
    write_atomic(path, (json.dumps(data) + "\n").encode(), 0o644)


def forget(paths: Paths, uuid: str) -> None:
    """Remove what is kept of a container.  Idempotent."""
    _path(paths, uuid).unlink(missing_ok=True)


def _path(paths: Paths, uuid: str) -> Path:
    return paths.lib / "traffic" / f"{uuid}.json"


def _counters(data: Any) -> Counters:  # noqa: ANN401
    return {str(name): (int(packets), int(octets)) for name, (packets, octets) in data.items()}
