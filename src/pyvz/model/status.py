"""What state an environment is in, and which verb may move it where."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The states of an environment, in the words that `prlctl list` prints."""

    STOPPED = "stopped"
    MOUNTED = "mounted"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    INVALID = "invalid"


# verb -> the states from which it may begin.  A verb that is missing may begin anywhere.
LEGAL_FROM: dict[str, frozenset[Status]] = {
    "start": frozenset({Status.STOPPED, Status.MOUNTED, Status.SUSPENDED}),
    "stop": frozenset({Status.RUNNING, Status.PAUSED}),
    "pause": frozenset({Status.RUNNING}),
    "resume": frozenset({Status.PAUSED, Status.SUSPENDED}),
    "suspend": frozenset({Status.RUNNING, Status.PAUSED}),
    "exec": frozenset({Status.RUNNING}),
    "mount": frozenset({Status.STOPPED, Status.SUSPENDED}),
    "umount": frozenset({Status.MOUNTED}),
    "delete": frozenset({Status.STOPPED, Status.SUSPENDED, Status.INVALID}),
    "clone": frozenset({Status.STOPPED}),
    "move": frozenset({Status.STOPPED}),
    "migrate": frozenset({Status.STOPPED, Status.RUNNING, Status.PAUSED, Status.SUSPENDED}),
    "snapshot": frozenset({Status.STOPPED, Status.MOUNTED, Status.RUNNING, Status.PAUSED}),
    "snapshot-switch": frozenset({Status.STOPPED, Status.MOUNTED}),
    "compact": frozenset({Status.STOPPED, Status.MOUNTED, Status.RUNNING, Status.PAUSED}),
    "convert": frozenset({Status.STOPPED}),
    "restore": frozenset({Status.STOPPED, Status.SUSPENDED, Status.INVALID}),
    "unregister": frozenset({Status.STOPPED, Status.SUSPENDED, Status.INVALID}),
}
