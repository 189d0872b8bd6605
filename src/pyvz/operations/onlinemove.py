"""Move the home of a running container to another place of the node.

Within a file system it is renamed below the running container: what is mounted stays mounted, and
nobody inside notices (`moves_mounted`).

To another file system the kernel has no way: a loop device that is written to cannot be given
another file (LOOP_CHANGE_FD takes read-only ones), and a mounted file system cannot be given
another device.  So an image is copied while the container runs, by rounds (follow.py); for the
last one its memory is written to disk (dump.py), and it goes on from there at the new place, with
all its processes; or (`restart`) it is stopped and started.  A disk that is a tree is copied in
that time as a whole.  Whatever fails before the new place is the true one: it is started again
where it was.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pyvz.errors import InvalidState, VZError
from pyvz.linux import file, run
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import dump, lifecycle, suspend, transfer
from pyvz.operations.follow import SCRATCH, Follower
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

# Of the old place: no part of what is moved (`.backup` shares its blocks with the disk there).
_STAYS = frozenset({SCRATCH, ".backup", ".running"})


def move(
    node: Node, old: Environment, new: Environment, *, restart: bool, progress: Progress
) -> None:
    """Take the home of the running or paused `old` to that of `new`; the caller holds the lease.

    restart: it is stopped and started anew instead of taking its memory along.
    Raises InvalidState (its memory cannot be saved, and `restart` is not given), Busy (programs of
    exec run in it), NoSpace, StorageError, CheckpointError, StopError: then it runs where it was.
    """
    able = storage.find(old.home).capabilities(old.home)
    new.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if able.moves_mounted and transfer.same_file_system(old.home, new.home.parent):
        transfer.transfer(node, old, new, progress)
        return
    _check_may_stop(node, old, restart=restart)
    journey = _Journey(node, old, progress, restart=restart)
    more = {} if restart else dump.carried(old)
    try:
        transfer.transfer(node, old, new, progress, fill=journey.fill, more=more)
    except BaseException:
        journey.take_back()
        raise
    lifecycle.start_locked(node, new, lifecycle.StartOptions(force=True), progress)


def _check_may_stop(node: Node, env: Environment, *, restart: bool) -> None:
    if node.status(env) != Status.RUNNING:
        raise InvalidState(f"{env.name} is {node.status(env)}", hint="Resume or stop it first.")
    if restart:
        return
    try:
        suspend.ready(node, env, node.registry.config(env))
    except VZError as error:
        raise InvalidState(
            f"{env.name} runs, and its disk cannot be exchanged below it: {error.message}",
            details="The new place is on another file system; what is mounted keeps the old one.",
            hint="--restart: it is copied while it runs, then stopped and started there.",
        ) from error
    suspend.foreign(node, env)


class _Journey:
    """The copying of a home, during which its container is stopped."""

    def __init__(self, node: Node, env: Environment, progress: Progress, *, restart: bool) -> None:
        self._restart = restart
        self._node = node
        self._env = env
        self._progress = progress
        self._stopped = False

    def fill(self, staging: Path) -> None:
        """Make the copy of the home in `staging`, whole and compared; then the container stands."""
        driver = storage.find(self._env.home)
        able = driver.capabilities(self._env.home)
        if not able.image:
            self._stop()
            transfer.copy(self._node, self._env, staging, self._progress)
            return
        names = [storage.ROOT_DISK]
        if able.disks:
            names = storage.many_disks(driver, self._env.home).disks(self._env.home)
        staging.mkdir(mode=0o700)
        followers = [Follower(self._env.home, staging, name, self._progress) for name in names]
        self._progress.stage(f"Copying {self._env.name}")
        images = {path for each in followers for path in (each.source, *each.shots)}
        _copy_rest(self._env.home, staging, images, self._progress)
        for follower in followers:
            follower.follow()
        self._stop()
        self._progress.stage("Copying what has changed")
        for follower in followers:
            follower.finish()
        if not self._restart:  # the memory
            file.remove_tree(staging / "dump")
            _copy_entry(self._env.home / "dump", staging / "dump", self._progress)
        file.syncfs(staging)

    def _stop(self) -> None:
        if self._restart:
            self._stopped = True
            lifecycle.halt(self._node, self._env, lifecycle.StopOptions(), self._progress)
            return
        suspend.foreign(self._node, self._env)
        dump.carry(self._node, self._env, self._progress)
        self._stopped = True

    def take_back(self) -> None:
        """Undo after a failure: what was made here goes, the container runs again."""
        file.remove_tree(self._env.home / SCRATCH)
        if not self._stopped or self._env.uuid in self._node.runtime.running():
            return
        try:
            env = self._node.registry.resolve(self._env.uuid)  # whichever place is the true one
            options = lifecycle.StartOptions(force=True)
            lifecycle.start_locked(self._node, env, options, NoProgress())
        except (VZError, OSError):
            log.exception("%s could not be started again", self._env.name)


def _copy_rest(old: Path, new: Path, images: set[Path], progress: Progress) -> None:
    """Copy all but the images that are followed; nothing of it changes while we have the lease."""
    for entry in sorted(old.iterdir()):
        if entry.name in _STAYS:
            continue
        target = new / entry.name
        if not any(image.parent == entry for image in images):
            _copy_entry(entry, target, progress)
            continue
        target.mkdir(mode=0o700)
        for inner in sorted(entry.iterdir()):
            if inner not in images:
                _copy_entry(inner, target / inner.name, progress)


def _copy_entry(source: Path, target: Path, progress: Progress) -> None:
    argv = ["cp", "--archive", "--reflink=auto", "--sparse=always", "--no-target-directory"]
    run.run([*argv, "--", source, target], timeout=None, poll=progress.check)
