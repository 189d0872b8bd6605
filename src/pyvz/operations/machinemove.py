"""Move the home of a running virtual machine to another file system of the node.

QEMU cannot be told that its images are elsewhere now, under the names that everything else calls
them by.  So its disks are mirrored into new images while it runs; when only what is being written
is missing, it is stopped, the mirrors are ended, its memory goes into its home (machinestate.py),
and it goes on at the new place from there, as from a suspension.  Snapshots of ploop disks are
files that nobody writes to, and are copied; those inside of qcow2 images cannot be.

Whatever fails before the new place is the true one: it goes on where it was.  When vzd dies
meanwhile, it runs where it was, or is suspended, at the one place or the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

from pyvz.errors import InvalidState, Unsupported, VZError
from pyvz.linux import file, run
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_machine import Drive
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    home,
    machine,
    machinedrives,
    machineground,
    machinekeys,
    machineleaving,
    machinepci,
    machinepending,
    machinestate,
    machineusb,
    transfer,
)
from pyvz.operations.node import Node
from pyvz.storage import bundle
from pyvz.store import savedstates
from pyvz.store.journal import Record
from pyvz.vm import image, mirror
from pyvz.vm.monitor import Monitor

log = logging.getLogger(__name__)

VERB: Final = transfer.VERB
_MIRRORED: Final[Mapping[str, object]] = {"mirrored": True}  # in the record of such a move
_STAYS: Final = frozenset({".running", ".backup"})
_TELL: Final = 0.2  # seconds between two looks at the mirrors


def move(node: Node, old: Environment, new: Environment, progress: Progress) -> None:
    """Take the home of the running `old` to that of `new`; the caller holds the lease.

    Raises InvalidState, Unsupported (what cannot be mirrored), NoSpace, CheckpointError, ...: it
    runs where it was then.
    """
    journey = _Journey(node, old, progress)
    try:
        transfer.transfer(node, old, new, progress, fill=journey.fill, more=_MIRRORED)
    except BaseException:
        journey.take_back()
        raise
    machine.wake(node, new, progress)


class _Journey:
    """The copying of a home, at the end of which its machine is suspended."""

    def __init__(self, node: Node, env: Environment, progress: Progress) -> None:
        self._node, self._env, self._progress = node, env, progress
        self._disks = _mirrored(node, env)

    def fill(self, staging: Path) -> None:
        """Make the copy of the home in `staging`, whole; then the machine is suspended."""
        node, env = self._node, self._env
        monitor = node.machines.monitor(env.uuid)
        staging.mkdir(mode=0o700)
        for drive in self._disks:
            self._begin(monitor, drive, staging)
        self._follow(monitor)
        self._progress.stage("Suspending")
        monitor.execute("stop")
        mirror.finish(monitor, self._names, self._progress.check)
        machinestate.save(env, monitor, machineground.layout(node, env), self._progress)
        machineground.quit_machine(node, env)
        machineground.clear(node, env)
        self._progress.stage("Copying what is beside the disks")
        done = {machinedrives.source_of(env, drive) for drive in self._disks}
        _copy_rest(env, staging, {env.home / name for name in _STAYS} | done, self._progress)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(drive.name for drive in self._disks if drive.enabled)

    def _begin(self, monitor: Monitor, drive: Drive, staging: Path) -> None:
        """Make the new image of a disk, and mirror the disk into it."""
        source = machinedrives.source_of(self._env, drive)
        target = staging / source.name
        if drive.format == machinedrives.BUNDLE:
            copy_ = bundle.copy_snapshots if drive.enabled else bundle.copy_whole
            copy_(source, target, self._progress)
        elif not drive.enabled:
            image.copy(source, target, self._progress)
        if not drive.enabled:  # QEMU does not have it
            return
        size = machinedrives.size_of(self._env, drive)
        machinedrives.make(drive, target, size, machinekeys.of(self._node, drive))
        with machinedrives.target_of(drive, target) as opened:
            mirror.begin_here(monitor, drive.name, opened)

    def _follow(self, monitor: Monitor) -> None:
        """Wait until only what is being written is missing."""
        self._progress.stage("Copying disks")
        while self._names and not (found := mirror.amount(monitor, self._names)).ready:
            self._progress.advance(found.done, found.total)
            self._progress.check()
            time.sleep(_TELL)

    def take_back(self) -> None:
        """Undo after a failure: the machine goes on, at whichever place is the true one."""
        node = self._node
        try:
            env = node.registry.resolve(self._env.uuid)
            _settle(node, env)
            if node.status(env) == Status.SUSPENDED:
                machine.wake(node, env, NoProgress())
        except (VZError, OSError):
            log.exception("%s does not go on", self._env.name)


def copy(node: Node, env: Environment, staging: Path, progress: Progress) -> None:
    """Make the copy of the home of a machine that stands still in `staging`."""
    staging.mkdir(mode=0o700)
    done = set()
    for drive in _disks_inside(node, env):
        if drive.format == machinedrives.BUNDLE:  # its snapshots share blocks, and go on doing so
            progress.stage(f"Copying {drive.name}")
            source = machinedrives.source_of(env, drive)
            bundle.copy_whole(source, staging / source.name, progress)
            done.add(source)
    _copy_rest(env, staging, done, progress)


def _copy_rest(env: Environment, staging: Path, done: Set[Path], progress: Progress) -> None:
    """Copy all of a home that is not DONE, and write it to the disk."""
    for entry in sorted(env.home.iterdir()):
        if entry not in done:
            argv = ["cp", "--archive", "--reflink=auto", "--sparse=always", "--"]
            run.run([*argv, entry, staging], timeout=None, poll=progress.check)
    file.syncfs(staging)


def _disks_inside(node: Node, env: Environment) -> tuple[Drive, ...]:
    """Return the disks whose images are in the home."""
    return tuple(
        each
        for each in node.registry.config(env).machine.drives
        if each.is_disk and each.image and machinedrives.source_of(env, each).parent == env.home
    )


def _mirrored(node: Node, env: Environment) -> tuple[Drive, ...]:
    """Return the disks whose images go along; raises what speaks against it."""
    hint = f"prlctl suspend {env.name}, move it, and resume it."
    if node.status(env) != Status.RUNNING:
        raise InvalidState(f"{env.name} is {node.status(env)}", hint=hint)
    config, monitor = node.registry.config(env), node.machines.monitor(env.uuid)
    machinepending.check_plugged(env, config, monitor, "be moved")
    found = _disks_inside(node, env)
    inside = [each.name for each in found if each.format != machinedrives.BUNDLE]
    if inside and savedstates.load(env.home).items:
        raise Unsupported(
            f"{env.name} has snapshots, which are not copied while it runs: they are inside of"
            f" the image of {inside[0]}",
            hint=hint,
        )
    machinepci.refuse(node, env, "it cannot be moved while it runs")
    if any(each.base for each in found):
        raise Unsupported(
            f"{env.name} is a linked clone: it is not copied while it runs", hint=hint
        )
    return found


def _settle(node: Node, env: Environment) -> None:
    """Bring a QEMU whose move has ended too early to a state that is known."""
    if env.uuid not in node.machines.running():
        return
    if machinestate.path(env).exists():
        machineground.quit_machine(node, env)
        machineground.clear(node, env)
        return
    machineleaving.release(node, env)
    monitor = node.machines.monitor(env.uuid)
    machineusb.put_in(node, env, node.registry.config(env), monitor)
    monitor.execute("cont")


def repair(node: Node, record: Record) -> None:
    """Finish or undo a move that was killed, and close its record; repeatable."""
    env = home.from_data(record.uuid, record.data)
    if env.kind == Kind.VM and record.data.get("mirrored"):
        try:
            _settle(node, env)
        except VZError:
            log.exception("%s: its QEMU could not be brought to a known state", env.name)
    transfer.repair(node, record)
