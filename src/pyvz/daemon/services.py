"""What the faces of the daemon share: the node, tasks, events, and the way to end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvz.daemon.events import Bus
from pyvz.daemon.sessions import Sessions
from pyvz.daemon.tasks import Tasks
from pyvz.operations.memorywatch import MemoryWatch
from pyvz.operations.node import Node


@dataclass(frozen=True)
class Services:
    """Made once by main, handed to every interface.

    node: the node's parts, for operations.
    stop: ends the daemon; containers go on.
    memory: the memory manager.
    """

    node: Node
    tasks: Tasks
    events: Bus
    sessions: Sessions
    stop: Callable[[], None]
    memory: MemoryWatch
