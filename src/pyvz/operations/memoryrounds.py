"""Rounds of memory that arrive while the container still runs on the other node (pre-copy).

    <images>/1        all of it
    <images>/2        what changed since       parent -> ../1
    <images>/         what the dump brings     parent -> 2

Each page is taken from the newest that has it: CRIU follows `parent`, which is its own name for it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from pyvz.errors import MigrationError, ProtocolError
from pyvz.migration import files
from pyvz.migration.wire import Channel
from pyvz.model.environment import Environment
from pyvz.operations import home, livedump
from pyvz.operations.node import Node

PARENT: Final = "parent"  # CR_PARENT_LINK in criu/include/image.h
_MOST: Final = 64  # rounds; the giving side's rule ends far sooner
_TIMEOUT: Final = 7 * 86400.0  # a dead connection is seen at once


class Rounds:
    """Those of one container; used: bytes of its memory."""

    def __init__(self, node: Node, env: Environment, used: int) -> None:
        # Together the rounds are seldom more than twice the memory: else they would not pay.
        self.images = livedump.place_of(node, env, memory=2 * used, name=livedump.ARRIVING)
        livedump.make(self.images)
        self._count = 0
        self._channel: Channel | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, number: int, channel: Channel) -> None:
        """Receive the next round; raises what has failed of the one before."""
        self._finish()
        if number != self._count + 1 or number > _MOST:
            raise ProtocolError("The other node counts its rounds wrongly")
        self._count = number
        directory = self.images / str(number)
        directory.mkdir()
        directory.chmod(0o755)  # CRIU opens it as the container's root, too
        if number > 1:
            (directory / PARENT).symlink_to(f"../{number - 1}")
        self._channel = channel
        self._thread = threading.Thread(
            target=self._receive, args=(directory,), name="memory-round", daemon=True
        )
        self._thread.start()

    def end(self) -> Path:
        """Wait for the last one; returns where the images of the dump belong."""
        self._finish()
        (self.images / PARENT).symlink_to(str(self._count))
        return self.images

    def failed(self) -> None:
        """Raise what went wrong, if something did."""
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Take them away."""
        if self._channel is not None:
            self._channel.abandon()
        if self._thread is not None:
            self._thread.join()
        livedump.remove(self.images)

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join(_TIMEOUT)
            if self._thread.is_alive():
                raise MigrationError("A round of memory was not written in time")
        self.failed()

    def _receive(self, directory: Path) -> None:
        assert self._channel is not None  # noqa: S101  begin() has set it
        try:
            with home.storage_errors("The memory could not be written"):
                files.receive(self._channel, directory, _TIMEOUT)
        except Exception as error:  # noqa: BLE001  told by whoever waits
            self._error = error
            self._channel.refuse()
