"""A running machine after a `set` that died in its middle: its devices are those of vm.conf again.

What was plugged in and is not saved is taken out, what was taken out and is still saved is plugged
in, and what the run state tells of processors and memory is QEMU's truth: a saved state with other
ones could not be loaded.  Then the images of disks that nobody names go (machinedisk.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from pyvz.errors import VZError
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations import (
    home,
    machinedisk,
    machineground,
    machinenet,
    machinepending,
    machineplug,
    machineusb,
    vmcard,
)
from pyvz.operations.node import Node
from pyvz.store.journal import Record
from pyvz.vm import plug
from pyvz.vm.monitor import Monitor

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0  # seconds for the guest to let a device go: others wait for the machine
VERB: Final = machinedisk.VERB  # whose journal records `repair` understands


def repair(node: Node, record: Record) -> None:
    """Put a machine right whose `set` died; repeatable.  The caller holds the lease."""
    env = home.from_data(record.uuid, record.data)
    if env.uuid in node.machines.running():
        with _told(env, "its devices"):
            heal(node, env)
    machinedisk.repair(node, record)


def heal(node: Node, env: Environment) -> None:
    """Bring what QEMU has in line with vm.conf; what cannot be is told in the log.

    Raises NotRunning, Timeout.
    """
    monitor = node.machines.monitor(env.uuid)
    config = node.registry.config(env)
    there = plug.devices(monitor)
    _drives(node, env, config, monitor, there)
    with _told(env, "its cards"):
        _cards(node, env, config, monitor, there)
    with _told(env, "its USB devices"):
        machineusb.heal(node, env, config, monitor)
    machineground.note_layout(node, env, plug.measured(monitor, machineground.layout(node, env)))
    machinepending.note(node, env, (config, config), monitor)


@contextmanager
def _told(env: Environment, what: str) -> Iterator[None]:
    try:
        yield
    except VZError as error:
        log.warning("%s: %s could not be put right: %s", env.name, what, error)


def _drives(
    node: Node, env: Environment, config: Config, monitor: Monitor, there: frozenset[str]
) -> None:
    wanted = {each.name: each for each in config.machine.drives if each.enabled}
    for name in sorted(there - wanted.keys()):
        if name.startswith("hdd"):
            with _told(env, name):
                plug.remove_nodes(monitor, name, _PATIENCE)
    for name, drive in wanted.items():
        if name not in there and drive.iface in machineplug.HOT:
            with _told(env, name):
                plug.remove_nodes(monitor, name)  # its image may still be open
                machineplug.plug_in(node, env, monitor, drive, config.machine.chipset)


def _cards(
    node: Node, env: Environment, config: Config, monitor: Monitor, there: frozenset[str]
) -> None:
    numbered = machinenet.names(config)
    for name in sorted(there - set(numbered.values())):
        if name.startswith("net"):
            plug.remove_nic(monitor, name, _PATIENCE)
    kept = tuple(nic for nic in config.network.interfaces if numbered.get(nic.ifname, "") in there)
    without = config.changed({"network.interfaces": kept})
    with ExitStack() as undo:
        vmcard.change(node, env, config, without, undo)
        machinenet.change(node, env, (without, config), monitor, undo)
        undo.pop_all()
