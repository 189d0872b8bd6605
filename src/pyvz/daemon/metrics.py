"""The figures of operations/metrics.py for Prometheus: plain HTTP on a loopback address.

Off unless vz.conf says METRICS="[ADDRESS:]PORT".  prometheus-client serves and writes the text; it
is imported only then.  Answers are at most PERIOD seconds old: however many ask, the node is looked
at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvz.daemon.services import Services
from pyvz.errors import VZError
from pyvz.model.endpoint import Endpoint, endpoint
from pyvz.operations import metrics
from pyvz.operations.node import Node

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "pyvz_"
PERIOD = 5.0  # seconds that a look at the node is good for

logger = logging.getLogger(__name__)


class Collector:
    """What prometheus-client asks for the metrics; in its threads."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._at = 0.0

    def describe(self) -> list[Metric]:
        """Return nothing: so it is not asked for all when it is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, at most PERIOD seconds old."""
        with self._lock:
            if not self._kept or time.monotonic() - self._at > PERIOD:
                self._kept = [_metric(family) for family in metrics.families(self._node)]
                self._at = time.monotonic()
            return list(self._kept)


def _metric(family: metrics.Family) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    kind = CounterMetricFamily if family.kind == metrics.COUNTER else GaugeMetricFamily
    made = kind(PREFIX + family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        made.add_metric(list(labels), value)
    return made


async def serve(services: Services, start: asyncio.Task[None]) -> None:
    """Serve as long as the daemon lives, if vz.conf says so."""
    await asyncio.wait({start})
    try:
        wanted = endpoint("METRICS", services.node.config().metrics)
    except VZError as error:
        logger.error("no metrics: %s", error)  # noqa: TRY400  a traceback tells people nothing
        return
    if wanted is None:
        return
    try:
        stop = await asyncio.to_thread(_listen, services.node, wanted)
    except OSError as error:
        logger.error("no metrics: %s:%d: %s", *wanted, error)  # noqa: TRY400
        return
    if not wanted.is_local:
        logger.warning("metrics are open to everybody who reaches %s", wanted.address)
    logger.info("metrics at http://%s:%d/metrics", *wanted)
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    stop()


def _listen(node: Node, wanted: Endpoint) -> Callable[[], None]:
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(Collector(node))
    server, thread = start_http_server(wanted.port, addr=wanted.address, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(1.0)

    return stop
