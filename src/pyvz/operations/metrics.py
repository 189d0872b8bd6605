"""Every figure of every environment, and of the node, as families of samples for a monitoring.

Names follow the rules of Prometheus: base units, `_total` for what only grows.  All samples of an
environment have the labels uuid and name; what the kernel does not count has no sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from pyvz.errors import VZError
from pyvz.linux.ksm import Ksm
from pyvz.operations import fields, samepage, traffic
from pyvz.operations.fields import ALIVE, Source
from pyvz.operations.node import Node, StatusReader
from pyvz.units import UNLIMITED
from pyvz.version import VERSION

logger = logging.getLogger(__name__)

GAUGE, COUNTER = "gauge", "counter"
_NANO = 1e-9


class Family(NamedTuple):
    """One metric.  samples: (label values, value)."""

    name: str
    help: str
    kind: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], float]]


class Figure(NamedTuple):
    """One figure of an environment; read returns None when it is not known, or has no limit."""

    name: str
    kind: str
    help: str
    read: Callable[[Source], float | None]


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds * _NANO


def _limit(value: int | None) -> float | None:
    return None if value is None or value >= UNLIMITED else value


def _nonzero(value: int | None) -> float | None:
    return value or None


def _guarantee(source: Source) -> float | None:
    entry = source.node.memory.entries().get(source.env.uuid)
    return None if entry is None else entry.guarantee


def _disk(key: str) -> Callable[[Source], float | None]:
    def read(source: Source) -> float | None:
        if source.status not in ALIVE:  # of a stopped one nobody wants its disk to be opened
            return None
        space = fields.disk_space(source)
        value = None if space is None else space[key]
        return None if value is None else value * 1024

    return read


FIGURES = (
    Figure("up", GAUGE, "1: its processes exist.", lambda s: s.status in ALIVE),
    Figure("uptime_seconds", GAUGE, "Since its start.", lambda s: fields.uptime(s) or None),
    Figure("cpu_seconds_total", COUNTER, "CPU time used.", lambda s: _seconds(s.usage.cpu_ns)),
    Figure(
        "cpu_throttled_seconds_total",
        COUNTER,
        "Time in which its CPU limit made it wait.",
        lambda s: _seconds(s.counters.throttled),
    ),
    Figure("cpu_units", GAUGE, "Share of CPU time.", lambda s: s.config.cpu.units),
    Figure("cpus", GAUGE, "CPUs it may use; none: all.", lambda s: _nonzero(s.config.cpu.cpus)),
    Figure("cpu_limit_percent", GAUGE, "100: one CPU.", lambda s: _nonzero(s.config.cpu.limit)),
    Figure("memory_bytes", GAUGE, "Memory used, page cache too.", lambda s: s.usage.memory),
    Figure("memory_peak_bytes", GAUGE, "Most of it so far.", lambda s: s.usage.memory_peak),
    Figure("memory_limit_bytes", GAUGE, "RAM limit.", lambda s: _limit(s.usage.memory_limit)),
    Figure("memory_guarantee_bytes", GAUGE, "Guaranteed memory.", _guarantee),
    Figure(
        "memory_limit_hits_total",
        COUNTER,
        "How often the RAM limit was hit.",
        lambda s: s.usage.memory_failures,
    ),
    Figure("memory_anonymous_bytes", GAUGE, "Memory without a file.", lambda s: s.counters.anon),
    Figure("memory_cache_bytes", GAUGE, "Page cache.", lambda s: s.counters.file),
    Figure("memory_shared_bytes", GAUGE, "Shared memory, tmpfs.", lambda s: s.counters.shared),
    Figure("memory_kernel_bytes", GAUGE, "Kernel memory for it.", lambda s: s.counters.kernel),
    Figure("memory_locked_bytes", GAUGE, "Cannot be taken.", lambda s: s.counters.locked),
    Figure("memory_sockets_bytes", GAUGE, "Socket buffers.", lambda s: s.counters.sockets),
    Figure("swap_bytes", GAUGE, "Swap used.", lambda s: s.usage.swap),
    Figure("swap_limit_bytes", GAUGE, "Swap limit.", lambda s: _limit(s.usage.swap_limit)),
    Figure("major_faults_total", COUNTER, "Pages read from disk.", lambda s: s.counters.major),
    Figure("oom_kills_total", COUNTER, "Killed for want of memory.", lambda s: s.usage.oom_kills),
    Figure("processes", GAUGE, "Processes and threads.", lambda s: s.usage.pids),
    Figure("processes_limit", GAUGE, "At most so many.", lambda s: _limit(s.usage.pids_limit)),
    Figure("forks_refused_total", COUNTER, "By that limit.", lambda s: s.usage.pids_failures),
    Figure("disk_read_bytes_total", COUNTER, "Read from disks.", lambda s: s.usage.io_read),
    Figure("disk_written_bytes_total", COUNTER, "Written to disks.", lambda s: s.usage.io_written),
    Figure("disk_used_bytes", GAUGE, "Of the root disk.", _disk("usage")),
    Figure("disk_limit_bytes", GAUGE, "Size of the root disk.", _disk("hardlimit")),
    Figure(
        "tcp_sockets", GAUGE, "TCP sockets in use.", lambda s: s.sockets.tcp if s.sockets else None
    ),
    Figure(
        "other_sockets",
        GAUGE,
        "UDP, raw and Unix sockets.",
        lambda s: s.sockets.other if s.sockets else None,
    ),
)
_OF = ("uuid", "name")


def families(node: Node) -> Iterator[Family]:
    """Yield every metric of the node and its environments as they are now."""
    statuses = StatusReader(node)
    sources = [
        Source(node, env, statuses.knowing(env, problem), config)
        for env, config, problem in node.registry.snapshot()
    ]
    yield Family("build_info", "Version of pyvz.", GAUGE, ("version",), [((VERSION,), 1.0)])
    yield _states(sources)
    for figure in FIGURES:
        samples = [
            ((source.env.uuid, source.env.name), float(value))
            for source in sources
            if (value := _read(figure, source)) is not None
        ]
        yield Family(figure.name, figure.help, figure.kind, _OF, samples)
    running = [source for source in sources if source.status in ALIVE]
    yield from _traffic(running)
    yield from _merging(node, running)


def _read(figure: Figure, source: Source) -> float | None:
    try:
        return figure.read(source)
    except (OSError, VZError) as error:  # it has ended meanwhile, or its disk is broken
        logger.debug("%s: %s: %s", source.env.name, figure.name, error)
        return None


def _states(sources: list[Source]) -> Family:
    count: dict[tuple[str, ...], float] = {}
    for source in sources:
        key = (str(source.env.kind), str(source.status))
        count[key] = count.get(key, 0.0) + 1.0
    return Family(
        "environments", "Environments by state.", GAUGE, ("type", "state"), list(count.items())
    )


def _traffic(running: list[Source]) -> Iterator[Family]:
    octets: list[tuple[tuple[str, ...], float]] = []
    packets: list[tuple[tuple[str, ...], float]] = []
    for source in running:
        with suppress(OSError, VZError):
            for each in traffic.traffic(source.node, source.env.uuid):
                key = (source.env.uuid, source.env.name, str(each.number))
                octets += [((*key, "in"), each.bytes_in), ((*key, "out"), each.bytes_out)]
                packets += [((*key, "in"), each.packets_in), ((*key, "out"), each.packets_out)]
    labels = (*_OF, "class", "direction")
    yield Family("network_bytes_total", "Traffic by class.", COUNTER, labels, octets)
    yield Family("network_packets_total", "Packets by class.", COUNTER, labels, packets)


def _merging(node: Node, running: list[Source]) -> Iterator[Family]:
    names = {
        "guest.ram.ksm_merged": ("memory_merged_bytes", "Pages shared with an equal one (KSM)."),
        "guest.ram.ksm_profit": ("memory_merged_profit_bytes", "What that saves."),
    }
    samples: dict[str, list[tuple[tuple[str, ...], float]]] = {key: [] for key in names}
    for source in running:
        for key, value in samepage.counters(node, source.env.uuid, source.init).items():
            samples[key].append(((source.env.uuid, source.env.name), float(value)))
    for key, (name, text) in names.items():
        yield Family(name, text, GAUGE, _OF, samples[key])
    with suppress(OSError):
        counted = Ksm().counters()
        node_wide = [((), float(counted.saved))]
        yield Family("ksm_saved_bytes", "Saved on the whole machine.", GAUGE, (), node_wide)
        cpu = [((), counted.cpu)]
        yield Family("ksm_cpu_seconds_total", "CPU time of KSM.", COUNTER, (), cpu)
