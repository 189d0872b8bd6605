"""Jobs on the disks of a running machine, which machineblockcopy.py begins: how they are followed
and ended, and the record of one that holds the lease.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from pyvz.errors import InvalidState, VZError
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import backuplease, home
from pyvz.operations.node import Node
from pyvz.store import copies
from pyvz.store.copies import Copying
from pyvz.store.journal import Journal, Record
from pyvz.vm import blockjob
from pyvz.vm.blockjob import Amount
from pyvz.vm.monitor import Monitor

log = logging.getLogger(__name__)

VERB: Final = "machine-blockjob"  # of the journal records that `repair` understands
_POLL: Final = 0.2  # seconds between two looks


@contextmanager
def job(node: Node, env: Environment, drive: Drive) -> Iterator[None]:
    """Have a record for the block, with which the job ends; the caller holds the lease."""
    monitor = node.machines.monitor(env.uuid)
    data = home.to_data(env) | {"disk": drive.name}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal, ExitStack() as stack:
        stack.callback(journal.done)
        stack.callback(blockjob.end, monitor, drive.name)
        blockjob.end(monitor, drive.name)  # what a killed one has left
        yield


def _under_way(node: Node, env: Environment, disk: str) -> tuple[Monitor, str]:
    """Return the job that is on a disk; raises NotRunning, InvalidState."""
    monitor = node.machines.monitor(env.uuid)
    name = blockjob.disk_of(monitor, disk)
    if name is None:
        raise InvalidState(f"No block job of {disk} of {env.name} is under way")
    return monitor, name


def cancel(node: Node, env: Environment, disk: str) -> None:
    """End the job on a disk: a copy that has caught up is whole; raises InvalidState."""
    monitor, name = _under_way(node, env, disk)
    if blockjob.cancel(monitor, name) and name == blockjob.COPY + disk:
        # Said here too: QEMU may be gone before whoever waits for the job has looked at it.
        with suppress(OSError):
            copies.save(backuplease.directory(node, env.uuid), Copying(disk))


def follow(look: Callable[[], Amount], progress: Progress) -> None:
    """Wait until all is done, and tell how far it is; raises what `look` raises, Cancelled."""
    while True:
        amount = look()
        progress.advance(amount.done, amount.total)
        if amount.ended:
            return
        time.sleep(_POLL)


def set_speed(node: Node, env: Environment, disk: str, speed: int) -> None:
    """Limit the job on a disk to SPEED bytes per second, 0: no limit; raises InvalidState."""
    monitor, name = _under_way(node, env, disk)
    blockjob.set_speed(monitor, name, speed)


def repair(node: Node, record: Record) -> None:
    """Undo what a killed job left, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: cleaning up an unfinished job of a disk", env.name)
    if env.uuid in node.machines.running():
        with suppress(VZError):
            blockjob.end(node.machines.monitor(env.uuid), str(record.data["disk"]))
    Journal.forget(node.paths, record.uuid)
