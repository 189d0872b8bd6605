"""Merging of equal pages (KSM) of containers: who takes part, what it saves, how hard it works.

KSM is one for the machine.  Whichever node holds the lock tunes it, as long as a container of its
takes part; what it found before is kept in a file and put back afterwards.  An administrator (or
ksmtuned, or the kernel's advisor) who turns the knobs meanwhile is left in peace.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from pathlib import Path

from pyvz.container.runtime import Init
from pyvz.errors import VZError
from pyvz.linux import ksm
from pyvz.linux.file import write_atomic
from pyvz.linux.ksm import Knobs, Ksm, Savings
from pyvz.memory.samepage import Controller
from pyvz.model.config import Config
from pyvz.model.switch import switched
from pyvz.operations.node import Node

logger = logging.getLogger(__name__)

FEATURE = "ksm"
LOCK = Path("/run/lock/pyvz-ksm")  # of the machine: two nodes must not tune one KSM


def wanted(node: Node, config: Config) -> bool:
    """Whether a container's equal pages are to be merged: as its FEATURES say, else vz.conf."""
    return bool(node.features.ksm) and switched(config, FEATURE, default=node.config().ksm)


def savings(node: Node, uuid: str) -> Savings:
    """Return what KSM does for one running container."""
    return ksm.savings(node.cgroups.pids(uuid))


class Samepage:
    """The tuning of KSM by one node; for one thread at a time."""

    def __init__(self, node: Node, kernel: Ksm | None = None) -> None:
        self._node = node
        self._ksm = kernel or Ksm()
        self._controller = Controller()
        self._found = node.paths.run / "ksm.json"
        self._lock = -1
        self._set: Knobs | None = None
        self._seen: set[tuple[str, int]] = set()
        self._left_alone = False

    @property
    def active(self) -> bool:
        """Whether this node tunes KSM."""
        return self._lock >= 0

    def look(self) -> None:
        """Do one round; OSError."""
        takers = self._takers()
        if not takers:
            self._stop()
            return
        if self._left_alone or not self._begin():
            return
        if self._changed_by_others():
            logger.warning("somebody else has tuned KSM: it is left alone")
            self._left_alone = True
            self._let_go()
            return
        if takers - self._seen:
            self._controller.news()
        self._seen = takers
        verdict = self._controller.step(time.monotonic(), self._ksm.counters())
        if verdict.knobs != self._set:
            logger.info("KSM: %s: %s", verdict.why, verdict.knobs)
            self._ksm.turn(verdict.knobs)
            self._set = verdict.knobs

    def close(self) -> None:
        """Put KSM back, unless containers that take part run on."""
        if not self._takers():
            self._stop()
        self._let_go()

    def _takers(self) -> set[tuple[str, int]]:
        """The running containers whose pages are merged, by what they were started with."""
        runtime = self._node.runtime
        return {
            (uuid, init.pid)
            for uuid, init in runtime.running().items()
            if runtime.merges(uuid, init)
        }

    def _begin(self) -> bool:
        """Have the machine's lock; remember how KSM was found."""
        if self.active:
            return True
        if not self._ksm.available() or self._ksm.advised():
            return False
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        if self._former() is None:
            write_atomic(self._found, json.dumps(self._ksm.knobs()), 0o600)
        else:  # an earlier vzd has tuned it, and was killed
            self._set = None
        return True

    def _former(self) -> Knobs | None:
        try:
            return Knobs(*map(int, json.loads(self._found.read_text())))
        except (OSError, ValueError, TypeError):
            return None

    def _changed_by_others(self) -> bool:
        return self._set is not None and self._ksm.knobs() != self._set

    def _stop(self) -> None:
        """Put KSM back as it was found; idempotent."""
        former = self._former()
        if former is not None and self._begin():
            if not self._changed_by_others():
                logger.info("KSM: no container takes part: as it was before: %s", former)
                self._ksm.turn(former)
            self._found.unlink(missing_ok=True)
        self._let_go()
        self._controller, self._set, self._seen = Controller(), None, set()
        self._left_alone = False

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def counters(node: Node, uuid: str, init: Init | None) -> dict[str, int]:
    """Return the statistics of the container of INIT: nothing when its pages are not merged."""
    try:
        if init is None or not node.runtime.merges(uuid, init):
            return {}
        found = savings(node, uuid)
    except (OSError, VZError):
        return {}
    return {"guest.ram.ksm_merged": found.merged, "guest.ram.ksm_profit": found.profit}
