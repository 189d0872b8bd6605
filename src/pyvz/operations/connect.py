"""The connection to another node that a request of migration asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvz.errors import BadValue
from pyvz.migration import address as addresses
from pyvz.migration.dial import Peer, dial
from pyvz.migration.request import Request
from pyvz.model.task import Progress
from pyvz.operations import home
from pyvz.operations.node import Node


@contextmanager
def connected(
    node: Node, target: str, request: Request, progress: Progress, *, hint: str = ""
) -> Iterator[Peer]:
    """Be connected to another node for the block.  target: [user@]host[:port].

    Raises ConnectionFailed, Cancelled; BadValue with `hint` when it is this node.
    """
    where = addresses.parse(target)
    progress.stage(f"Connecting to {where}")
    own = home.owner_id(node)
    with dial(
        where,
        own,
        options=request.ssh,
        silence=request.silence,
        compress=request.compress,
        check=progress.check,
    ) as peer:
        if peer.node == own:
            raise BadValue(f"{where} is this node", hint=hint)
        yield peer
