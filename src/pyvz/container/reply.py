"""The answer that one request of a client waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvz.container import protocol
from pyvz.container.connection import Connection
from pyvz.container.launch import StepError


class Reply:
    """The answer that one request waits for; a client that is gone by then does not matter."""

    def __init__(self, client: Connection, identity: object) -> None:
        self.client = client
        self._identity = identity

    def ok(self, result: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Answer; takes the descriptors over."""
        if self.client.sock.fileno() < 0:
            protocol.close_all(fds)
            return
        self.client.send({"id": self._identity, "ok": result}, fds)

    def fail(self, error: StepError) -> None:
        """Answer with an error."""
        if self.client.sock.fileno() >= 0:
            self.client.send({"id": self._identity, "error": error.to_json()})
