"""At the start of vzd: make the state of the node whole again.

vzd may have been killed in the middle of anything, and containers may have ended while it was
away.  Truth is the kernel (the keeper's children, cgroups, mounts) and the journals: operations
finish or undo what is half done.  Ends of containers that the keeper kept for us arrive as
`Exit`s as soon as we listen, and are handled like any other.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pyvz.errors import VZError
from pyvz.operations import lifecycle, provision

if TYPE_CHECKING:
    from pyvz.container.runtime import Exit
    from pyvz.operations.node import Node

EXIT_WORKERS = 8  # a reboot starts the container again; this many at a time

logger = logging.getLogger(__name__)


class Exits:
    """Handles the ends of containers, each in a thread."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pool = ThreadPoolExecutor(EXIT_WORKERS, "exit")

    def watch(self) -> None:
        """Begin to listen; what the keeper remembers comes first."""
        self._node.runtime.on_exit(self._submit)

    def _submit(self, ended: Exit) -> None:
        try:
            self._pool.submit(self._handle, ended)
        except RuntimeError:  # shut down: the next vzd gets it from the keeper or recovers it
            logger.debug("%s: end of init not handled any more", ended.uuid)

    def _handle(self, ended: Exit) -> None:
        logger.info("%s: init ended: %s, status %s", ended.uuid, ended.reason, ended.status)
        try:
            lifecycle.exited(self._node, ended)
        except VZError as error:
            logger.warning("%s: after its end: %s", ended.uuid, error)
        except Exception:
            logger.exception("%s: after its end", ended.uuid)

    def close(self) -> None:
        """Take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def recover(node: Node) -> None:
    """Finish or undo everything that an earlier daemon left half done; never raises."""
    for step in (provision.recover, lifecycle.recover):
        try:
            step(node)
        except (VZError, OSError):
            logger.exception("recovery: %s", step.__module__)
        except Exception:
            logger.exception("recovery: a defect in %s", step.__module__)
