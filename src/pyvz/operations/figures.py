"""True figures inside: keeps an lxcfs running and every container's files of it alive.

lxcfs may crash, hang, or be replaced by an upgrade at any time.  Its files are then dead in every
container: reads fail, or wait for ever.  So its end is noticed at once (by a pidfd), a hang within
seconds (by a read with a deadline, after which it is killed); a new one is started, and the files
of it are put in the place of the dead ones inside every container (container/refit.py).  When no
new one can be had, the dead files are taken away, so that the kernel's own show.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence

from pyvz.container.refit import AT_ONCE, DEADLINE, Subject
from pyvz.container.runtime import Init
from pyvz.errors import VZError
from pyvz.linux import lxcfs, namespace, process, run
from pyvz.linux.lxcfs import Daemon, Lxcfs
from pyvz.model.config import Config
from pyvz.model.switch import switched
from pyvz.operations.node import Node

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 3.0  # seconds after which lxcfs counts as hung
ATTEMPTS = 3  # failed starts in a row after which containers get the kernel's own files
SLOWEST = 60.0  # seconds between two attempts, at most
FEATURE = "lxcfs"


def wanted(node: Node, config: Config) -> bool:
    """Whether a container is to see its own figures."""
    return switched(config, FEATURE, default=node.config().lxcfs)


class Figures:
    """The lxcfs of a node and what containers have of it.  Thread-safe."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lxcfs = Lxcfs(node.paths.run / "lxcfs", node.paths.log / "lxcfs.log")
        self._lock = threading.RLock()  # protects all below
        self._looked = False
        self._serving: Daemon | None = None
        self._failures = 0
        self._not_before = 0.0
        self._fitted: set[tuple[str, int]] = set()
        self._fitted_to: Daemon | None = None

    def ensure(self) -> None:
        """Have an lxcfs, if one can be had, for a container that is about to start; never fails."""
        with self._lock:
            if self._alive() or time.monotonic() < self._not_before:
                return
            self._restart()

    @property
    def daemon(self) -> Daemon | None:
        """The lxcfs that serves, so that its end can be waited for."""
        return self._serving

    @property
    def idle(self) -> bool:
        """Whether there is nothing to watch before the next container starts."""
        return self._serving is None and not self._failures and not self._fitted

    def look(self) -> None:
        """Set right what is wrong: lxcfs first, then each container's files."""
        with self._lock:
            if not self._healthy() and time.monotonic() >= self._not_before:
                self._restart()
            serving, failures = self._serving, self._failures
        if serving is None and 0 < failures < ATTEMPTS:
            return  # soon again
        self._fit(serving)

    def end(self) -> None:
        """End lxcfs unless containers run; they need it until another vzd is there."""
        with self._lock:
            if self._serving is not None and not self._node.runtime.running():
                self._lxcfs.end()
                self._serve(None)

    # -- lxcfs ----------------------------------------------------------------------------------

    def _alive(self) -> bool:
        if not self._looked:  # for one of an earlier vzd: its containers have its files
            self._looked = True
            self._serve(self._lxcfs.running())
        return self._serving is not None and process.alive(*self._serving)

    def _healthy(self) -> bool:
        if not self._alive():
            return self._serving is None and not self._needed()
        if self._lxcfs.answers(ANSWER_TIMEOUT):
            return True
        logger.error(
            "lxcfs (pid %d) does not answer and is restarted",
            self._serving.pid if self._serving else 0,
        )
        return False

    def _needed(self) -> bool:
        """Whether a running container is to have figures."""
        return any(self._wanted_by(uuid) for uuid in self._node.runtime.running())

    def _restart(self) -> None:
        if self._serving is not None:
            logger.warning("another lxcfs is started for pid %d", self._serving.pid)
        self._serve(None)
        try:
            made = self._lxcfs.start()
        except (VZError, OSError) as error:
            self._failures += 1
            pause = min(2.0 ** min(self._failures, 6), SLOWEST)
            self._not_before = time.monotonic() + pause
            say = logger.warning if self._failures <= ATTEMPTS else logger.debug
            say("no true figures inside containers: %s", error)
            return
        self._failures, self._not_before = 0, 0.0
        self._serve(made)

    def _serve(self, daemon: Daemon | None) -> None:
        files = self._node.runtime.figures
        self._serving = None
        if daemon is None:
            files.drop()
        elif not self._lxcfs.answers(ANSWER_TIMEOUT):
            logger.error("lxcfs (pid %d) does not answer", daemon.pid)
            files.drop()
        else:
            files.take(self._lxcfs.mount)
            self._serving = daemon

    # -- containers -----------------------------------------------------------------------------

    def _fit(self, serving: Daemon | None) -> None:
        """Give every container that is not yet known to have them the files of SERVING."""
        running = self._node.runtime.running()
        if serving != self._fitted_to:
            self._fitted, self._fitted_to = set(), serving
            others = True
        else:
            others = False  # namespaces of services inside are younger than the files
        new = {uuid: init for uuid, init in running.items() if (uuid, init.pid) not in self._fitted}
        subjects = list(self._subjects(new, serving, others=others))
        for reason in _refit(self._lxcfs, serving, subjects):
            logger.warning("true figures inside: %s", reason)
        self._fitted |= {(uuid, init.pid) for uuid, init in new.items()}
        self._fitted &= {(uuid, init.pid) for uuid, init in running.items()}

    def _subjects(
        self, running: dict[str, Init], serving: Daemon | None, *, others: bool
    ) -> Iterable[Subject]:
        ours = namespace.identity(os.getpid(), "user")
        for uuid, init in running.items():
            try:
                mapped = namespace.identity(init.pid, "user") != ours
                whole = serving is not None and self._wanted_by(uuid)
                yield Subject(init.pid, init.start_time, mapped, whole)
                if others:
                    yield from self._services(uuid, init, mapped=mapped)
            except (OSError, VZError):  # it has ended
                continue

    def _services(self, uuid: str, init: Init, *, mapped: bool) -> Iterable[Subject]:
        """One process of each further mount namespace inside (PrivateTmp= and the like)."""
        seen = {namespace.identity(init.pid, "mnt")}
        for pid in self._node.cgroups.pids(uuid):
            try:
                place = namespace.identity(pid, "mnt")
                if place not in seen:
                    seen.add(place)
                    yield Subject(pid, process.start_time(pid), mapped, whole=False)
            except OSError:
                continue

    def _wanted_by(self, uuid: str) -> bool:
        try:
            env = self._node.registry.resolve(uuid)
            return wanted(self._node, self._node.registry.peek(env))
        except VZError:
            return False


def _refit(daemon: Lxcfs, serving: Daemon | None, subjects: Sequence[Subject]) -> list[str]:
    """Have the files replaced in the mount namespaces of SUBJECTS; returns what went wrong."""
    if not subjects:
        return []
    place = "-" if serving is None else os.fspath(daemon.mount)
    argv = [sys.executable, "-I", "-m", "pyvz.container.refit", place, *map(str, subjects)]
    patience = 30.0 + DEADLINE * (1 + len(subjects) // AT_ONCE)
    try:
        done = run.run(argv, timeout=patience)
    except VZError as error:
        return [str(error)]
    return done.stdout.splitlines()


def available() -> bool:
    """Whether this node can have true figures."""
    return lxcfs.available()
