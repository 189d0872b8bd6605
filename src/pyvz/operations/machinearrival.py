"""A running virtual machine that arrives: QEMU waits for its memory, its disks come over NBD.

    prepare   images of the right size, QEMU in "inmigrate", its cards lead nowhere, disks exported
    stream    a channel is bridged to the exports, or to QEMU's socket for the memory
    restore   everything is here; the disks are on the disk; nothing runs
    go        it is ours: it runs, its cards lead into the network, which is told

Until it goes, whatever fails or dies takes everything away.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.errors import BadValue, InvalidState, MigrationError, ProtocolError, VZError
from pyvz.migration.bridge import Bridge
from pyvz.migration.offer import MIRROR, DiskOffer, Offer
from pyvz.migration.wire import Channel, Wire
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.operations import (
    machinecreate,
    machinedrives,
    machineground,
    machinekeys,
    machinenet,
    machinestate,
    memory,
)
from pyvz.operations.node import Node
from pyvz.store.journal import Journal
from pyvz.vm import livememory, mirror
from pyvz.vm.monitor import Monitor
from pyvz.vm.spec import Layout

log = logging.getLogger(__name__)

GOING: Final = "going"  # step of the journal: from here on it may have run
PAUSED: Final = "paused"  # another: it is not to run
_SOCKET: Final = "nbd.sock"


class Arrival:
    """One machine on its way into life."""

    def __init__(
        self, node: Node, env: Environment, config: Config, journal: Journal, wire: Wire
    ) -> None:
        self._node, self._env, self._config, self._journal = node, env, config, journal
        self._wire = wire
        self._undo = ExitStack()
        self._bridges = ExitStack()
        self._paused = False
        self._post_copy = False
        self._exports: tuple[str, ...] = ()
        self._monitor: Monitor | None = None

    def prepare(self, frame: str, offer: Offer, *, shared: bool) -> None:
        """Have QEMU wait; FRAME says how the machine is put together.  Raises BadValue, ...

        shared: its home is on storage that both nodes have.
        """
        try:
            told = json.loads(frame)
            layout = Layout.from_json(told["layout"])
            layout = layout._replace(hugepages=self._config.machine.hugepages)
        except (ValueError, KeyError, TypeError) as error:
            raise BadValue(f"The other node's machine cannot be understood: {error}") from error
        self._paused = bool(offer.checkpoint.get("paused"))
        if self._paused:
            self._journal.note(PAUSED)
        self._post_copy = bool(told.get("post-copy"))
        node, env = self._node, self._env
        machinecreate.furnish_missing(env.home)
        if shared and self._config.machine.tpm:
            raise InvalidState(
                f"{env.name} has a TPM, whose state both nodes would have open",
                hint=f"prlctl suspend {env.name}, migrate it, and resume it there.",
            )
        mirrored = [] if shared else [each for each in offer.disks if each.form == MIRROR]
        self._make_images(mirrored)
        state = machineground.State(layout, lambda monitor: machinestate.plug_in(monitor, layout))
        monitor = machineground.raise_up(node, env, self._config, state, self._undo)
        self._monitor = monitor
        if self._post_copy:
            livememory.check_post_copy(monitor)
        self._exports = tuple(each.name for each in mirrored)
        if self._exports:
            with mirror.listen(self._socket()) as listening:
                mirror.export(monitor, listening, self._exports)

    def _make_images(self, disks: list[DiskOffer]) -> None:
        """Make the images that are filled by the mirrors."""
        drives = {each.name: each for each in self._config.machine.drives}
        for disk in disks:
            drive = drives.get(disk.name)
            if drive is None or not drive.image or disk.size is None:
                raise ProtocolError("The other node offers a disk that its machine does not have")
            path = machinedrives.source_of(self._env, drive)
            if path.parent != self._env.home:
                raise ProtocolError("The other node offers a disk outside of the machine's home")
            key = machinekeys.of(self._node, drive)  # of the same name on this node
            machinedrives.make(drive, path, disk.size, key)

    def _socket(self) -> Path:
        return self._node.machines.directory(self._env.uuid) / _SOCKET

    def stream(self, name: str, channel: Channel) -> None:
        """Bridge a channel: to the export of a disk, or to QEMU's socket for the memory."""
        monitor = self._ready()
        if name == livememory.STREAM:
            ours, theirs = socket.socketpair()
            with theirs:
                livememory.take(monitor, theirs.fileno(), post_copy=self._post_copy)
        else:
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(os.fspath(self._socket()))
        self._bridges.enter_context(Bridge(channel, ours))

    def restore(self) -> None:
        """Wait until everything is here; nothing of it runs yet."""
        monitor = self._ready()
        livememory.arrived(monitor, self._wire.check, post_copy=self._post_copy)
        if self._exports:
            mirror.withdraw(monitor)

    def go(self) -> None:
        """It is ours: let it run."""
        self._journal.note(GOING)
        monitor = self._ready()
        going(self._node, self._env, self._config, monitor, paused=self._paused)
        self._undo.pop_all()
        if self._post_copy:
            livememory.complete(monitor, self._wire.check)
        self._bridges.close()

    def cancel(self) -> None:
        """Take everything away; idempotent."""
        self._bridges.close()
        self._undo.close()

    def _ready(self) -> Monitor:
        if self._monitor is None:
            raise MigrationError("Nothing was prepared for the memory of a machine")
        return self._monitor


def going(
    node: Node, env: Environment, config: Config, monitor: Monitor, *, paused: bool = False
) -> None:
    """Let one run that has arrived, and tell the network where it is; repeatable."""
    if not paused:
        monitor.go()
    machinenet.connected(node, env, config, monitor)
    machinenet.announce(config, monitor)
    memory.activate(node, env)
    (env.home / ".running").touch()


def before_decision(node: Node, env: Environment) -> None:
    """Take away what a death before the decision has left in the kernel."""
    node.machines.kill(env.uuid, timeout=machineground.KILL_TIMEOUT)
    machineground.clear(node, env)


def after_death(node: Node, env: Environment, *, paused: bool) -> None:
    """Bring one to a state that is known whose vzd died after the decision.

    QEMU has it all and outlived vzd: it goes on, unless it came paused.  One that has ended is
    stopped.
    """
    if env.uuid not in node.machines.running():
        machineground.clear(node, env)
        return
    try:
        monitor = node.machines.monitor(env.uuid)
        going(node, env, node.registry.config(env), monitor, paused=paused)
    except VZError:
        log.exception("%s came from another node and does not go on", env.name)
