"""A virtual machine goes to another node: the phases that are not those of a container (giving.py).

    prepare      QEMU waits there, with empty disks that it exports
    mirror       its disks are copied, and what is written meanwhile follows
    memory       rounds of it; then QEMU stops the machine ("pre-switchover")
    settle       the mirrors are ended: both disks are the same
    switch over  the rest of its memory; QEMU there has everything, and nothing runs
    commit       the other node decides; it runs there, or goes on here

Disks and memory go through sockets that both vzds bridge to channels of the one ssh connection.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyvz.errors import ConnectionBroken, VZError
from pyvz.migration.bridge import Bridge
from pyvz.migration.offer import MIRROR
from pyvz.migration.request import Report
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import NoProgress
from pyvz.operations import departure, machine, machineground, machineleaving, machineoffer
from pyvz.operations.giving import Giving
from pyvz.store.journal import Journal
from pyvz.units import MIB
from pyvz.vm import livememory, mirror
from pyvz.vm.livememory import Figures
from pyvz.vm.monitor import Monitor

log = logging.getLogger(__name__)

_TELL = 0.2  # seconds between two looks at the mirrors


class MachineGiving(Giving):
    """The migration of one virtual machine as it goes on."""

    def _stop_it(self) -> None:
        machine.halt(self.node, self.env, machine.Stop(), self.progress)

    def _start_again(self) -> None:
        if self.env.uuid not in self.node.machines.running():
            machine.begin(self.node, self.env, machine.Start(), NoProgress())

    def _live(self) -> Report:
        """Mirror, send the memory, and let the other node decide, while nothing of it runs."""
        journal = self._journal
        assert journal is not None  # noqa: S101  begun by _reserve
        monitor = self.node.machines.monitor(self.env.uuid)
        answer: dict[str, Any] = {}
        try:
            self._prepare()
            with ExitStack() as bridges:
                self._mirror(monitor, bridges)
                self._note_frozen(journal)
                self._move(monitor, bridges)
                answer = self._settled_by(monitor)
                self._complete(monitor)
        except BaseException as error:
            if not self._gone_though(error, self._release):
                raise
        still = self.resumed_at - (self.halted_at or self.resumed_at)
        return self._forward(journal, self._report(answer, still))

    def _release(self) -> None:
        with _noted(self.env):
            machineleaving.release(self.node, self.env)

    def _settled_by(self, monitor: Monitor) -> dict[str, Any]:
        """Have it all taken into use and decided."""
        journal = self._journal
        assert journal is not None  # noqa: S101  begun by _reserve
        self.progress.stage("Switching over")
        self.peer.ask("restore")
        # Noted early, as the disk takes its time; before it is asked in any case: whoever repairs
        # after a death must not let it go on here unasked.
        journal.note(departure.DECIDING)
        self.memory = livememory.figures(monitor.execute("query-migrate")).sent
        self.peer.answer(progress=self.progress)
        return self._decide(journal)

    def _note_frozen(self, journal: Journal) -> None:
        """From here on it may stand still; whoever repairs has to know whether it was to run."""
        journal.note(departure.FROZEN, {"paused": bool(self.offer.checkpoint.get("paused"))})

    def _complete(self, monitor: Monitor) -> None:
        """Wait until all memory has followed one that runs there already (post-copy)."""
        if not self.request.post_copy:
            return
        self.progress.stage("Sending the rest of the memory")
        try:
            livememory.complete(monitor, self.peer.wire.check)
        except (VZError, OSError):
            log.exception("%s: its memory did not follow it: it is lost there", self.env.name)

    def _prepare(self) -> None:
        """Have QEMU wait on the other node."""
        self.progress.stage("Preparing")
        made = machineground.layout(self.node, self.env)
        frame: dict[str, Any] = {"layout": made._asdict(), "disks": list(self._mirrored())}
        memory = self.offer.memory
        if self.request.post_copy:
            frame["post-copy"] = True
        self.peer.call("prepare", frame=json.dumps(frame), memory=memory, progress=self.progress)

    def _mirrored(self) -> tuple[str, ...]:
        if self.shared:
            return ()
        return tuple(each.name for each in self.offer.disks if each.form == MIRROR)

    def _bridged(self, name: str, bridges: ExitStack) -> socket.socket:
        """Return a socket whose other end is on the other node: of a disk, or of the memory."""
        ours, theirs = socket.socketpair()
        channel = self.peer.new_channel()
        try:
            self.peer.call("stream", name=name, channel=channel.number, progress=self.progress)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        bridges.enter_context(Bridge(channel, ours))
        return theirs

    # disks

    def _mirror(self, monitor: Monitor, bridges: ExitStack) -> None:
        """Copy the disks until only what is just being written is missing."""
        names = self._mirrored()
        based = {each.name for each in self._drives() if each.base}
        for name in names:
            with self._bridged(name, bridges) as sock:
                mirror.begin(monitor, name, sock, whole=name in based)
        if not names:
            return
        self.progress.stage("Copying disks")
        told = monitor.told
        while not (found := mirror.amount(monitor, names)).ready:
            self.progress.advance(found.done, found.total)
            self._alive()
            monitor.doze(_TELL, told)
            told = monitor.told
        self._rounds.append(found.done)

    def _drives(self) -> tuple[Drive, ...]:
        return machineoffer.disks_of(self.node.registry.config(self.env))

    def _alive(self) -> None:
        """Raise when it was called off, or the connection broke."""
        self.progress.check()
        self.peer.wire.check()

    # memory

    def _move(self, monitor: Monitor, bridges: ExitStack) -> None:
        late = self.request.post_copy
        self.progress.stage("Sending memory")
        with self._bridged(livememory.STREAM, bridges) as sock:
            livememory.begin(monitor, sock.fileno(), post_copy=late)
        livememory.standing(monitor, self._tell, post_copy=late)
        self.halted_at = time.monotonic()
        mirror.finish(monitor, self._mirrored(), self._alive)
        livememory.switch_over(monitor, self._alive, post_copy=late)

    def _tell(self, found: Figures) -> None:
        """Show how the memory goes."""
        if found.rounds > 1:
            self.progress.stage(f"Sending memory: {spoken(found)}")
        self.progress.advance(found.total - found.left, found.total)
        self._alive()


def spoken(found: Figures) -> str:
    """Return in words how the memory goes."""
    words = [f"round {found.rounds}", f"{found.left / MIB:.0f} MiB left"]
    if found.rate:
        words.append(f"{found.rate / MIB:.1f} MiB/s")
        words.append(f"{found.left / found.rate:.0f} s")
    if found.slowed:
        words.append(f"the guest is slowed down by {found.slowed} %")
    return ", ".join(words)


@contextmanager
def _noted(env: Environment) -> Iterator[None]:
    """Log what goes wrong in the block; the error that led there is told."""
    try:
        yield
    except (VZError, ConnectionBroken):
        log.exception("%s: not all is as it was", env.name)
