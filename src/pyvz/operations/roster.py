"""Every environment with its configuration and state, remembered while the kernel says that nothing
about it has changed (changes.py), so that a question costs a look into memory.

What is remembered is true: before each answer the kernel is asked what has changed meanwhile, and
what did is forgotten.  What passes (an environment that starts, stops, ...) is never remembered.
The watch is there before anything is read.  After BELIEVED seconds all is read again anyway:
for a home that another node changes on shared storage, or a directory above it that was renamed.

    known, table    from memory, in any thread, without waiting; None: it has to be read
    find, read      read what is not known; they look at disks
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pyvz.linux.mount import mount_points
from pyvz.model.config import Config
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.operations.changes import ALL, MOUNTS, Changes
from pyvz.operations.node import GOING, PASSING, Node, StatusReader
from pyvz.store.state import RunState

BELIEVED: Final = 10.0  # seconds
_RUNNING: Final = frozenset({Status.RUNNING, Status.PAUSED})

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """One environment at one moment.

    pid: of its init or QEMU as the run state has it, 0 without one.  memo: what others derived from
    these values, for as long as they are true.
    """

    env: Environment
    config: Config
    status: Status
    pid: int
    root: str  # where its root is mounted, when it is
    memo: dict[Any, Any]

    @property
    def machine_runs(self) -> bool:
        """Whether QEMU decides about its state."""
        return self.env.kind == Kind.VM and self.status in _RUNNING


class _Read(NamedTuple):
    """What was just read.  lasts: until something changes that we would hear of."""

    known: Known
    lasts: bool


class Table(NamedTuple):
    """Every environment, ordered by name.  memo: what was derived from all of them."""

    rows: tuple[Known, ...]
    memo: dict[Any, Any]


class Roster:
    """What is known of the environments of one node; thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reading = threading.Lock()  # one reader at a time; taken before the other
        self._guard = threading.Lock()  # of what follows; nobody waits while holding it
        self._changes: Changes | None = None
        self._broken = False
        self._known: dict[str, Known] = {}
        self._machines: dict[str, Known] = {}  # of them the machines that run
        self._table: Table | None = None
        self._touched: set[str] = set()  # what has changed since a reader began
        self._due = 0.0  # when all is to be read again

    def known(self, uuid: str) -> Known | None:
        """Return what is known of one, None when it has to be read."""
        with self._guard:
            self._forget()
            return self._known.get(uuid)

    def table(self) -> Table | None:
        """Return what is known of all, None when something of it has to be read."""
        with self._guard:
            self._forget()
            return self._table

    def find(self, uuid: str) -> Known:
        """Return one, read where it has to be; raises EnvironmentNotFound."""
        found = self.known(uuid)
        if found is not None:
            return found
        with self._reading:
            self._begin()
            env = self._node.registry.resolve(uuid)
            followed = self._follow([env])
            env = self._node.registry.resolve(uuid)
            reader = StatusReader(self._node, env.uuid)
            made = self._read_one(env, self._node.registry.peek(env), reader)
            self._keep([made], followed)
            return made.known

    def read(self) -> Table:
        """Return all, read where they have to be."""
        table = self.table()
        if table is not None:
            return table
        with self._reading:
            self._begin()
            snapshot = self._node.registry.snapshot()
            with self._guard:
                unknown = [env for env, _, _ in snapshot if env.uuid not in self._known]
            followed = self._follow(unknown)
            if unknown:
                snapshot = self._node.registry.snapshot()
            rows, made = self._rows(snapshot)
            return self._keep(made, followed, rows)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._guard:
            self._broken = True
            self._clear()
            if self._changes is not None:
                self._changes.close()
                self._changes = None

    # -- reading --------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Note changes from now on; open the watches when that has not been done."""
        with self._guard:
            if self._changes is None and not self._broken:
                try:
                    self._changes = Changes(self._node.paths)
                except OSError as error:
                    self._broken = True
                    log.warning("nothing is watched, so all is read each time: %s", error)
            self._forget()
            self._touched.clear()

    def _follow(self, envs: Sequence[Environment]) -> set[str]:
        """Watch what the state of environments is read from; return the UUIDs where that can be."""
        changes = self._changes
        if changes is None:
            return set()
        for env in envs:
            changes.leave(env.uuid)
        return {env.uuid for env in envs if changes.follow(env) and self._follow_group(env.uuid)}

    def _follow_group(self, uuid: str) -> bool:
        path = self._node.cgroups.events_file(uuid)
        changes = self._changes
        if changes is None:
            return False
        return not os.path.exists(path) or changes.follow_group(uuid, path)

    def _rows(
        self, snapshot: Sequence[tuple[Environment, Config, str]]
    ) -> tuple[list[Known], list[_Read]]:
        """Return all in their order, and of them those that were read."""
        with self._guard:
            known = dict(self._known)
        reader: StatusReader | None = None
        rows: list[Known] = []
        made: list[_Read] = []
        for env, config, problem in snapshot:
            found = known.get(env.uuid)
            if found is None or found.config is not config or found.env is not env:
                reader = reader or StatusReader(self._node)
                read = self._read_one(env, config, reader.knowing(env, problem))
                made.append(read)
                found = read.known
            rows.append(found)
        return rows, made

    def _read_one(self, env: Environment, config: Config, reader: StatusReader) -> _Read:
        status = reader.of(env)
        state = RunState.load(self._node.paths, env.uuid)
        root = os.path.realpath(self._node.root(env, config))
        known = Known(env, config, status, state.pid if state is not None else 0, root, {})
        passes = status in PASSING or (state is not None and state.status in PASSING)
        # Without a NAME of its own it is called as a link elsewhere.
        return _Read(known, lasts=not passes and config.is_set("identity.name"))

    def _keep(self, made: Sequence[_Read], followed: set[str], rows: Sequence[Known] = ()) -> Table:
        """Remember what was read and has not changed since, and the table when it is all known."""
        with self._guard:
            self._forget()
            changed = self._touched
            for known, lasts in made:
                uuid = known.env.uuid
                if lasts and uuid in followed and not changed & {uuid, ALL}:
                    self._known[uuid] = known
                    if known.machine_runs:
                        self._machines[uuid] = known
            if MOUNTS in changed:
                self._forget_mounts()
            table = Table(tuple(rows), {})
            if rows and all(self._known.get(each.env.uuid) is each for each in rows):
                self._table = table
            return table

    # -- forgetting -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Forget what is not true any more (the guard is held)."""
        now = time.monotonic()
        if self._changes is None or now > self._due:
            self._due = now + BELIEVED
            self._clear()
        if self._changes is None:
            return
        for subject in self._changes.drain():
            if subject == MOUNTS:
                self._forget_mounts()
            elif subject == ALL:
                self._clear()
            else:
                self._drop(subject)
        for uuid, each in tuple(self._machines.items()):
            monitor = self._node.machines.connected(uuid)
            going = monitor is not None and monitor.state in GOING
            if monitor is None or going != (each.status is Status.RUNNING):
                self._drop(uuid)

    def _forget_mounts(self) -> None:
        """Forget those that something was mounted on, or unmounted from."""
        mounted = mount_points()
        for uuid, each in tuple(self._known.items()):
            seen = each.status is Status.MOUNTED
            if each.status not in _RUNNING and seen != (each.root in mounted):
                self._drop(uuid)
        self._touched.add(MOUNTS)

    def _drop(self, uuid: str) -> None:
        self._known.pop(uuid, None)
        self._machines.pop(uuid, None)
        self._touched.add(uuid)
        self._table = None

    def _clear(self) -> None:
        self._known.clear()
        self._machines.clear()
        self._touched.add(ALL)
        self._table = None
