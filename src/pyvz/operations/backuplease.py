"""Who a backup or a restore of an environment keeps out.

There is one at a time (`alone_with`).  A backup that reads from the running QEMU of a machine does
not hold the environment's lease, so that the machine can be looked at, changed and worked in; it
needs that QEMU and its disks, though.  While it reads, its directory is there, which appears under
the lease of the environment only: who takes that lease by `lease`, or asks `refuse` under it, does
not find a backup beginning behind his back.

    <run>/vm-backup/<uuid>/    what the backup needs (machinebackup.py)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from pyvz.errors import Locked
from pyvz.model.environment import Environment
from pyvz.operations.node import Node
from pyvz.store import copies, pulls
from pyvz.store.lease import Lease, holder

_PAUSE = 0.1  # seconds between two looks whether a backup has ended


def _key(uuid: str) -> str:
    """Return by what the lease of a backup is called; that of the environment is another."""
    return str(uuid5(NAMESPACE_URL, f"pyvz:backup:{uuid}"))


@contextmanager
def alone_with(node: Node, uuid: str) -> Iterator[None]:
    """Keep another backup or restore of the environment out; raises Locked."""
    try:
        held = Lease.take(node.paths, _key(uuid), "backup")
    except Locked as error:
        raise Locked("A backup of it is just being made or restored") from error
    with held:
        yield


def directory(node: Node, uuid: str) -> Path:
    """Return where daemons and socket of a machine's backup are."""
    return node.paths.run / "vm-backup" / uuid


def under_way(node: Node, uuid: str) -> bool:
    """Whether a backup reads the disks of a machine; what a killed one has left does not count."""
    return directory(node, uuid).exists() and holder(node.paths, _key(uuid)) is not None


def open_ended(node: Node, uuid: str) -> bool:
    """Whether a backup reads them that only its client ends: no reason to keep QEMU alive."""
    found = (directory(node, uuid) / name for name in (pulls.NAME, copies.NAME))
    return under_way(node, uuid) and any(path.exists() for path in found)


def refuse(node: Node, env: Environment) -> None:
    """Raise Locked when a backup reads the disks; the caller holds the lease."""
    if under_way(node, env.uuid):
        raise Locked(
            f"{env.name} is being backed up",
            hint="Wait for the end of the backup, or end it: Ctrl-C where it was begun; virsh"
            " domjobabort, or blockjob --abort.",
        )


@contextmanager
def lease(
    node: Node, env: Environment, action: str, *, timeout: float | None = None
) -> Iterator[Lease]:
    """Hold the environment's lease, with no backup reading its disks; waits as `node.lease` does.

    For verbs that end QEMU or change what is on its disks.  Raises Locked.
    """
    deadline = time.monotonic() + (node.default_timeout if timeout is None else timeout)
    with ExitStack() as held:
        while True:
            left = max(0.0, deadline - time.monotonic())
            lease = held.enter_context(node.lease(env, action, timeout=left))
            try:
                refuse(node, env)
                break
            except Locked:
                held.close()
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE)
        yield lease
