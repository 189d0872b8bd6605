"""The daemon from its locked node to its end: put together, recover, serve, end orderly."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from pyvz.daemon import (
    autostart,
    figureswatch,
    firewallwatch,
    ksmwatch,
    leasewatch,
    limitwatch,
    log,
    machinewatch,
    memorywatch,
    metrics,
    migrationwatch,
    netwatch,
    office,
    recovery,
    spacewatch,
    trafficwatch,
)
from pyvz.daemon.access import Caller
from pyvz.daemon.api_backup import Backup
from pyvz.daemon.api_checkpoint import Checkpoint
from pyvz.daemon.api_environment import Environment
from pyvz.daemon.api_hdd import Hdd
from pyvz.daemon.api_image import Image
from pyvz.daemon.api_machine import Machine
from pyvz.daemon.api_memory import Memory
from pyvz.daemon.api_migration import Migration
from pyvz.daemon.api_network import Network
from pyvz.daemon.api_node import Node
from pyvz.daemon.api_pool import Pool
from pyvz.daemon.api_storage import Storage
from pyvz.daemon.api_template import Template
from pyvz.daemon.api_traffic import Traffic
from pyvz.daemon.events import Bus
from pyvz.daemon.replies import ErrorInterface
from pyvz.daemon.server import Server
from pyvz.daemon.services import Services
from pyvz.daemon.sessions import Sessions
from pyvz.daemon.tasks import Tasks
from pyvz.errors import VZError
from pyvz.linux import inotifylimits
from pyvz.model.task import NoProgress
from pyvz.operations import lifecycle
from pyvz.operations.figures import Figures
from pyvz.operations.memorywatch import MemoryWatch
from pyvz.operations.node import open_node
from pyvz.operations.pool import open_pools
from pyvz.operations.samepage import Samepage
from pyvz.store import defaults
from pyvz.store.paths import Paths
from pyvz.version import VERSION

PATIENCE = 10.0  # seconds that clients wait for the recovery; then they are served beside it
DRAIN = 30.0  # seconds that running tasks get at the end
INTERFACES = (
    *(Environment, Node, Template, Image, Hdd, Pool, Storage, Backup, Traffic, Network, Memory),
    *(Migration, Checkpoint, Machine),
)
URL = "https://github.com/pyvz/pyvz"

logger = logging.getLogger(__name__)


class Options(NamedTuple):
    """The command line."""

    paths: Paths
    foreground: bool
    debug: bool


def run(
    options: Options,
    sock: socket.socket,
    serving: Callable[[], None],
    notify: Callable[[bytes], None],
) -> int:
    """Serve on SOCK until a signal; SERVING is called when it does, NOTIFY tells systemd things.

    Raises VZError when the node cannot be opened.
    """
    log.configure(options.paths.log, stderr=options.foreground, debug=options.debug)
    logger.info("vzd %s begins, pid %d, root %s", VERSION, os.getpid(), options.paths.root)
    try:
        asyncio.run(_daemon(options.paths, sock, serving, notify))
    except (VZError, OSError) as error:
        logger.error("vzd cannot start: %s", error)  # noqa: TRY400  a traceback tells people nothing
        raise
    except Exception:
        logger.exception("vzd ends by a defect")
        return 1
    logger.info("vzd has ended")
    return 0


async def _daemon(
    paths: Paths,
    sock: socket.socket,
    serving: Callable[[], None],
    notify: Callable[[bytes], None],
) -> None:
    began = time.monotonic()
    events = Bus(paths.log / "events.log")
    events.attach(asyncio.get_running_loop())
    await asyncio.to_thread(defaults.seed, paths)
    await asyncio.to_thread(open_pools, paths)
    node = await asyncio.to_thread(open_node, paths, events)
    stop = asyncio.Event()
    tasks = Tasks(os.fspath(paths.log / log.LOG_NAME))
    server = Server(sock, lambda caller: interfaces(services, caller), tasks.internal_error)

    def end() -> None:
        server.stop()  # at once: who connects from now on starts the next vzd
        stop.set()

    services = Services(node, tasks, events, Sessions(), end, MemoryWatch(node))
    _on_signals(end)
    exits = recovery.Exits(node)
    figures = Figures(node)
    node.runtime.figures.summon = figures.ensure
    samepage = Samepage(node)
    start = asyncio.create_task(_bring_up(services, exits))
    watches = _watches(services, start, figures, samepage)
    await asyncio.wait({start}, timeout=PATIENCE)
    gateway = await office.serve(services)  # first: who hears of us may go there at once
    if not stop.is_set():
        server.start()
        serving()
    gc.freeze()  # what is there will be there: a collection of it would hold up a command
    logger.info("vzd serves after %.3f s", time.monotonic() - began)
    await stop.wait()
    notify(b"STOPPING=1")
    if gateway is not None:
        await gateway.close()
    for task in (start, *watches):
        task.cancel()
    await _wind_up(services)
    await asyncio.to_thread(figures.end)
    await asyncio.to_thread(samepage.close)
    await asyncio.to_thread(services.memory.close)
    exits.close()
    await asyncio.to_thread(node.machines.close)
    await server.close()


def _watches(
    services: Services, start: asyncio.Task[None], figures: Figures, samepage: Samepage
) -> list[asyncio.Task[None]]:
    """Start what runs beside the server until the end."""
    watches = (
        spacewatch.watch(services, start),
        trafficwatch.watch(services, start),
        netwatch.watch(services, start),
        firewallwatch.watch(services, start),
        leasewatch.watch(services, start),
        figureswatch.watch(services, figures, start),
        ksmwatch.watch(services, samepage, start),
        limitwatch.watch(services, start),
        metrics.serve(services, start),
        memorywatch.watch(services, start),
        migrationwatch.watch(services, start),
        machinewatch.watch(services, start),
    )
    return [asyncio.create_task(watch) for watch in watches]


async def _bring_up(services: Services, exits: recovery.Exits) -> None:
    """Repair what an earlier vzd left, then start what starts with the node."""
    node = services.node
    try:
        await asyncio.to_thread(inotifylimits.widen)
        first = autostart.due(node.paths.run)
        order = await asyncio.to_thread(lifecycle.autostart_order, node) if first else []
        await asyncio.to_thread(recovery.networks, node)
        await asyncio.to_thread(machinewatch.listen, node)
        await asyncio.to_thread(exits.watch)
        await asyncio.to_thread(exits.settle)
        await asyncio.to_thread(recovery.recover, node)
        if order:
            logger.info("autostart of %d environments", len(order))
            await autostart.autostart(services, order)
    except (VZError, OSError):
        logger.exception("bringing up the node's environments")


async def _wind_up(services: Services) -> None:
    """End the tasks; stop the environments too when the whole machine goes down."""
    if await asyncio.to_thread(autostart.machine_goes_down):
        logger.info("the machine goes down: stopping the environments")
        await asyncio.to_thread(autostart.autostop, services.node, NoProgress())
    left = await services.tasks.drain(DRAIN)
    for task in left:
        logger.warning(
            "task %d (%s %s) is left to the next start", task.id, task.work.verb, task.work.ref
        )


def _on_signals(end: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, log.reopen)


def interfaces(services: Services, caller: Caller) -> VarlinkInterfaceRegistry:
    """Return the interfaces of one connection, made for its CALLER."""
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(VarlinkServiceInterface("pyvz", "vzd", VERSION, URL, registry))
    for interface in INTERFACES:
        registry.register_interface(interface(services, caller))
    registry.register_interface(ErrorInterface())
    return registry
