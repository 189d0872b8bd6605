"""A forced stop that comes while an orderly one still waits for the guest.

It does not wait for the lease, which the other one holds for up to a minute: it ends the guest, the
other verb sees that and finishes, and then the lease is free.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pyvz.errors import VZError
from pyvz.model.environment import Environment
from pyvz.operations.node import Node
from pyvz.store.lease import holder

log = logging.getLogger(__name__)

PATIENCE: Final = 60.0  # seconds for the other verb to finish
_WAITING: Final = frozenset({"stop", "restart"})  # actions of leases under which guests are asked


def stopping(node: Node, env: Environment, end: Callable[[], None]) -> bool:
    """END the guest when another stop waits for it; whether one did."""
    found = holder(node.paths, env.uuid)
    if found is None or found.action not in _WAITING:
        return False
    log.info("%s: ended while process %d waits for it to %s", env.name, found.pid, found.action)
    with suppress(VZError, OSError):
        end()
    return True
