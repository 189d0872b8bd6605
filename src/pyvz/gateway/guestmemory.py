"""The memory of a running domain in libvirt's words.

What a machine's guest has left only the guest knows, and tells by its balloon; where it says
nothing, nothing is said.  Of a container it is what its limit leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pyvz.gateway import domainxml
from pyvz.gateway.domain import Domain, is_machine
from pyvz.gateway.xdr import ULLONG, Typed
from pyvz.model.usage import Usage
from pyvz.operations import machinememory
from pyvz.operations.node import Node
from pyvz.units import KIB
from pyvz.vm.balloon import Told

# What is known, by its name in the statistics in bulk -> its tag in those of one domain.
_TAGS: Final = {
    "major_fault": 2, "unused": 4, "available": 5, "current": 6, "rss": 7, "usable": 8,
    "last-update": 9, "disk_caches": 10,
}  # fmt: skip
_PLAIN: Final = frozenset({"major_fault", "last-update"})  # not bytes


def of(node: Node, found: Domain, usage: Usage) -> Mapping[str, int]:
    """Return what is known, by libvirt's names: bytes, faults, seconds since the epoch."""
    limit = domainxml.memory_limit(found)
    known = {"current": limit, "maximum": limit}
    if usage.memory is None:
        return known
    known["rss"] = usage.memory
    if not is_machine(found):
        left = max(0, limit - usage.memory)
        return known | {"available": limit, "unused": left, "usable": left}
    told = machinememory.said(node, found.env.uuid)
    return known if told is None else known | dict(_told(told))


def current(node: Node, found: Domain, usage: Usage) -> int:
    """Return what a running domain has: a container what it uses, a machine what its balloon left.

    In bytes.
    """
    if not is_machine(found):
        return usage.memory or 0
    told = machinememory.said(node, found.env.uuid)
    return told.actual if told is not None else domainxml.memory_limit(found)


def figures(known: Mapping[str, int]) -> list[Typed]:
    """Return what is known for the statistics in bulk, in KiB."""
    return [Typed(f"balloon.{name}", ULLONG, _plain(name, value)) for name, value in known.items()]


def tagged(known: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the same for those of one domain."""
    return [
        {"tag": _TAGS[name], "val": _plain(name, value)}
        for name, value in known.items()
        if name in _TAGS
    ]


def _told(told: Told) -> Iterator[tuple[str, int]]:
    yield "current", told.actual
    if told.updated:
        yield "available", told.total
        yield "unused", told.free
        yield "usable", told.available
        yield "disk_caches", told.caches
        yield "major_fault", told.major
        yield "last-update", told.updated


def _plain(name: str, value: int) -> int:
    return value if name in _PLAIN else value // KIB
