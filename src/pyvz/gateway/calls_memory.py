"""What is asked of a machine's memory: how often its guest tells of it, how fast it changes."""

from __future__ import annotations

from typing import Any, Final

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.xdr import INT, LLONG, Typed
from pyvz.model.task import Progress
from pyvz.operations.node import Node
from pyvz.vm import balloon

Key = dict[str, Any]

_STATES: Final = {"unstarted": 0, "measuring": 1, "measured": 2}
_LONGEST: Final = 60  # seconds of a measurement; QEMU takes no more


def domain_set_memory_stats_period(
    call: Call, _progress: Progress, *, dom: Key, period: int, flags: int
) -> None:
    """Have the guest tell of its memory every PERIOD seconds, 0: no more; while it runs."""
    _ = flags
    if not 0 <= period <= 1 << 30:
        raise Failure(failure.INVALID_ARGUMENT, f"{period} is no number of seconds")
    found = _machine(call, dom, "is looked at by the node itself")
    balloon.ask_every(call.office.node.machines.monitor(found.env.uuid), period)


def domain_start_dirty_rate_calc(
    call: Call, _progress: Progress, *, dom: Key, seconds: int, flags: int
) -> None:
    """Measure how much the guest writes; the statistics in bulk tell what was found."""
    if not 1 <= seconds <= _LONGEST:
        raise Failure(failure.INVALID_ARGUMENT, f"A measurement takes 1 to {_LONGEST} seconds")
    if flags:
        raise Failure(failure.UNSUPPORTED, "Samples of pages are measured (--mode page-sampling)")
    found = _machine(call, dom, "has no memory that would be measured before a migration")
    monitor = call.office.node.machines.monitor(found.env.uuid)
    monitor.execute("calc-dirty-rate", {"calc-time": seconds})


def dirty_rate(node: Node, found: Domain) -> list[Typed]:
    """Return what the last measurement has found, or that there was none."""
    if not (found.running and domain.is_machine(found)):
        return []
    told = node.machines.monitor(found.env.uuid).execute("query-dirty-rate")
    figures = [Typed("dirtyrate.calc_status", INT, _STATES.get(str(told["status"]), 0))]
    figures.append(Typed("dirtyrate.calc_start_time", LLONG, int(told["start-time"])))
    figures.append(Typed("dirtyrate.calc_period", INT, int(told["calc-time"])))
    if "dirty-rate" in told:
        rate = int(told["dirty-rate"])
        figures.append(Typed("dirtyrate.megabytes_per_second", LLONG, rate))
    return figures


def _machine(call: Call, dom: Key, otherwise: str) -> Domain:
    found = domain.find_running(call.office.node, dom)
    domain.check_machine(found, f"its memory {otherwise}")
    return found
