"""The verbs of vcmmdctl: VEs registered by hand, figures at run time, statistics.

Environments are registered by their start; by hand it is meant for services of the node (SRVC, by
the path of their control group) and for trying things out.  What is changed here lasts until the
environment stops: the configuration is `prlctl set`'s.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from typing import Any, NamedTuple

from pyvz.errors import (
    AlreadyExists,
    AlreadyRunning,
    BadValue,
    NotRunning,
    SetError,
    VeNotRegistered,
    VZError,
)
from pyvz.model.memory import Reservation, Sample, VeType
from pyvz.operations import machinememory, memory
from pyvz.operations.memorywatch import MemoryWatch
from pyvz.operations.node import Node
from pyvz.store.memorybook import check_name

log = logging.getLogger(__name__)

# The fields of `vcmmdctl stats`, in its order; -1 where nobody counts.
STATS = (
    *("rss", "host_mem", "host_swap", "actual", "memfree", "memavail", "swapin", "swapout"),
    *("minflt", "majflt", "rd_req", "rd_bytes", "wr_req", "wr_bytes", "last_update"),
)
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")
_LOGGERS = ("pyvz.memory", "pyvz.operations.memory", "pyvz.operations.memorywatch", __name__)


class Figures(NamedTuple):
    """What is to change; None: stays.  Sizes in bytes, UNLIMITED for no limit."""

    guarantee: int | None = None
    limit: int | None = None
    swap: int | None = None
    cache: int | None = None
    cpunum: int | None = None

    def on(self, entry: Reservation) -> Reservation:
        """Return ENTRY with these figures."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        changed = entry._replace(**given)
        return changed if self.guarantee is None else changed._replace(auto=False)


def ves(node: Node) -> list[Reservation]:
    """Return all registered VEs, by name."""
    return sorted(node.memory.entries().values())


def register(node: Node, name: str, kind: str, figures: Figures) -> None:
    """Make a VE known and set its guarantee aside; raises AlreadyExists, GuaranteeRefused."""
    try:
        type_ = VeType(kind.upper())
    except ValueError as error:
        raise BadValue(
            f"'{kind}' is not a type of VE", hint="Use one of: " + ", ".join(VeType)
        ) from error
    if check_name(name) in node.memory.entries():
        raise AlreadyExists(f"VE {name} is registered already")
    with ExitStack() as undo:
        memory.replace(node, figures.on(Reservation(name, type_)), undo, label=name)
        undo.pop_all()


def activate(node: Node, ref: str) -> None:
    """Manage a registered VE from now on; raises AlreadyRunning, NotRunning (no such group)."""
    entry = _entry(node, ref)
    if entry.active:
        raise AlreadyRunning(f"VE {entry.name} is active already")
    found = memory.managed(node, entry)
    if found is None or found.sample() is None:
        raise NotRunning(f"VE {entry.name} has no control group with memory accounting")
    entry = entry._replace(active=True)
    _limit(node, Reservation(entry.name, entry.type), entry)
    node.memory.put(entry)
    memory.protect(node, entry)


def update(node: Node, ref: str, figures: Figures) -> None:
    """Change the figures of an active VE at once; raises NotRunning, GuaranteeRefused, ..."""
    before = _entry(node, ref)
    if not before.active:
        raise NotRunning(f"VE {before.name} is not active")
    with ExitStack() as undo:
        memory.replace(node, figures.on(before), undo, label=before.name)
        _limit(node, before, node.memory.entries()[before.name])
        undo.pop_all()


def deactivate(node: Node, watch: MemoryWatch, ref: str) -> None:
    """Manage a VE no more; its limits stay, and so does what was promised."""
    entry = _entry(node, ref)
    if not entry.active:
        raise NotRunning(f"VE {entry.name} is not active")
    _let_go(node, watch, entry)
    node.memory.put(entry._replace(active=False))


def unregister(node: Node, watch: MemoryWatch, ref: str) -> None:
    """Forget a VE."""
    entry = _entry(node, ref)
    if entry.active:
        _let_go(node, watch, entry)
    node.memory.drop(entry.name)


def stats(node: Node, watch: MemoryWatch, ref: str) -> dict[str, int]:
    """Return what is known of a VE, -1 for what nobody counts."""
    entry = _entry(node, ref)
    figures = dict.fromkeys(STATS, -1)
    seen = watch.sample(entry.name)
    found = memory.managed(node, entry) if seen is None else None
    sample = seen[1] if seen else found.sample() if found is not None else None
    if sample is None:
        return figures
    if seen is not None:
        figures["last_update"] = int(seen[0])
    return figures | _figures(node, entry, sample)


def free(node: Node) -> dict[str, int]:
    """Return the node's memory as `vcmmdctl free` shows it."""
    at = memory.memory_of_node(node)
    entries = ves(node)
    overhead = sum(entry.overhead for entry in entries)
    promised = sum(entry.minimum for entry in entries)
    services = [entry for entry in entries if entry.type is VeType.SRVC]
    reserved = at.total - at.usable + sum(entry.minimum for entry in services)
    return {
        "total": at.total,
        "overhead": overhead,
        "host_reserved": min(reserved, at.total),
        "guarantee": promised,
        "swap_usage": at.swap,
        "swap_total": at.swap_total,
        "available": max(at.usable - promised, 0),
        "cpu_reserved": min(sum(entry.cpunum for entry in services), os.cpu_count() or 1),
    }


def config(node: Node, *, full: bool = False) -> dict[str, Any]:
    """Return vcmmd.conf; full: with what counts where it says nothing."""
    conf = node.memory.conf()
    found: dict[str, Any] = conf.full() if full else json.loads(json.dumps(conf.data))
    return found


def set_log_level(level: str) -> None:
    """Log from this level on."""
    if level not in LOG_LEVELS:
        raise BadValue(f"'{level}' is not a log level", hint="Use one of: " + ", ".join(LOG_LEVELS))
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(level.upper())


def _entry(node: Node, ref: str) -> Reservation:
    entries = node.memory.entries()
    if ref in entries:
        return entries[ref]
    try:
        name = node.registry.resolve(ref).uuid
    except VZError:
        name = ref
    if name not in entries:
        raise VeNotRegistered(f"VE {ref} is not registered")
    return entries[name]


def _limit(node: Node, before: Reservation, wanted: Reservation) -> None:
    """Put new limits in force; raises NotEnoughResources, SetError: then the old ones are."""
    if (before.limit, before.swap) == (wanted.limit, wanted.swap):
        return
    if wanted.type.machine:
        machinememory.limit(node, wanted)
        return
    groups = node.cgroups.memory
    service = wanted.type is VeType.SRVC
    path = groups.service(wanted.name) if service else groups.path(wanted.name)
    try:
        groups.set_limits(path, wanted.limit, wanted.swap)
    except OSError as error:
        raise SetError(
            f"The kernel refused the new limits of {wanted.name}: {error.strerror}",
            details=str(error.filename or ""),
        ) from error


def _let_go(node: Node, watch: MemoryWatch, entry: Reservation) -> None:
    """Take guarantee and protection away from a VE that is not managed any more."""
    try:
        memory.protect(node, entry._replace(guarantee=0))
    finally:
        watch.forget(entry.name)


def _figures(node: Node, entry: Reservation, sample: Sample) -> dict[str, int]:
    limit = min(entry.limit, memory.memory_of_node(node).total)
    free_ = max(limit - sample.used, 0)
    figures = {
        "rss": sample.anon,
        "host_mem": sample.used,
        "host_swap": sample.swap,
        "actual": sample.used,
        "memfree": free_,
        "memavail": min(free_ + sample.cache, limit),
        "majflt": sample.major,
    }
    if entry.type is not VeType.SRVC:
        usage = node.cgroups.usage(entry.name)
        figures["rd_bytes"] = -1 if usage.io_read is None else usage.io_read
        figures["wr_bytes"] = -1 if usage.io_written is None else usage.io_written
    if entry.type.machine and (told := machinememory.said(node, entry.name)):
        figures["actual"] = told.actual
        if told.updated:
            figures |= {"memfree": told.free, "memavail": told.available}
            figures["last_update"] = told.updated
    return figures
