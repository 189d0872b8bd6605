"""At the start of vzd: make the state of the node whole again.

vzd may have been killed in the middle of anything, and containers may have ended while it was
away.  Truth is the kernel (the keeper's children, cgroups, mounts) and the journals: operations
finish or undo what is half done.  Ends of containers that the keeper kept for us arrive as
`Exit`s as soon as we listen, and are handled like any other; only then comes the repair, which
would take a container that asked for its reboot meanwhile for one that is simply gone.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pyvz.errors import VZError
from pyvz.linux.process import boot_id
from pyvz.model.environment import Kind
from pyvz.operations import lifecycle, migrate, privatenet, provision, virtualnet
from pyvz.store import lease
from pyvz.store.state import RunState

if TYPE_CHECKING:
    from pyvz.container.runtime import Exit
    from pyvz.operations.node import Node

EXPECT = 30.0  # seconds for the handling of ends that the keeper kept
OTHERS = 120.0  # seconds for an operation under way to finish
EXIT_WORKERS = 8  # a reboot starts the container again; this many at a time

logger = logging.getLogger(__name__)


class Exits:
    """Handles the ends of containers, each in a thread."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = ThreadPoolExecutor(EXIT_WORKERS, "exit")
        self._handled: set[str] | None = set()  # until `settle` is over
        self._changed = threading.Condition()

    def watch(self) -> None:
        """Begin to listen; what the keeper remembers comes first."""
        self._node.runtime.on_exit(self._submit)

    def settle(self, timeout: float = EXPECT) -> None:
        """Wait until every end that must come has come and been handled; blocks.

        It must come for what our state says to run and the keeper does not.
        """
        running = self._node.runtime.running()
        now = boot_id()
        missing = set()
        for env in self._node.registry.environments():
            if env.kind == Kind.VM:  # those are heard of by their monitors
                continue
            state = None if env.uuid in running else RunState.load(self._node.paths, env.uuid)
            if state is not None and state.boot_id == now:
                missing.add(env.uuid)
        with self._changed:
            if not self._changed.wait_for(lambda: missing <= (self._handled or set()), timeout):
                logger.warning("nobody knows how %s ended", ", ".join(sorted(missing)))
            self._handled = None

    def _submit(self, ended: Exit) -> Future[None]:
        try:
            return self._pool.submit(self._handle, ended)
        except RuntimeError:  # shut down: the keeper tells the next vzd
            logger.debug("%s: end of init not handled any more", ended.uuid)
            never: Future[None] = Future()
            return never

    def _handle(self, ended: Exit) -> None:
        logger.info("%s: init ended: %s, status %s", ended.uuid, ended.reason, ended.status)
        try:
            if not self._done_by_others(ended):
                lifecycle.exited(self._node, ended)
        except VZError as error:
            logger.warning("%s: after its end: %s", ended.uuid, error)
        except Exception:
            logger.exception("%s: after its end", ended.uuid)
        with self._changed:
            if self._handled is not None:
                self._handled.add(ended.uuid)
                self._changed.notify_all()

    def _done_by_others(self, ended: Exit) -> bool:
        """Whether a stop under way cleaned up, so that nothing is left to do.

        It is awaited without queueing for the lease: else the user's next command would find the
        environment locked for nothing.
        """
        paths = self._node.paths
        if not any(env.uuid == ended.uuid for env in self._node.registry.environments()):
            return False
        deadline = time.monotonic() + OTHERS
        while lease.holder(paths, ended.uuid) and time.monotonic() < deadline:
            time.sleep(0.02)
        state = RunState.load(paths, ended.uuid)
        return state is None or state.pid != ended.pid

    def close(self) -> None:
        """Take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def networks(node: Node) -> None:
    """Bring the networks of the node up, before anybody is plugged into one; never raises."""
    for step in (virtualnet.bring_up, privatenet.bring_up):
        try:
            step(node)
        except (VZError, OSError):
            logger.exception("recovery: %s", step.__module__)
        except Exception:
            logger.exception("recovery: a defect in %s", step.__module__)


def recover(node: Node) -> None:
    """Finish or undo everything that an earlier daemon left half done; never raises."""
    for step in (provision.recover, lifecycle.recover, migrate.recover):
        try:
            step(node)
        except (VZError, OSError):
            logger.exception("recovery: %s", step.__module__)
        except Exception:
            logger.exception("recovery: a defect in %s", step.__module__)
