"""What goes to the other node while a running container stands still, all of it at the same time.

ready    before: frame there, CRIU and the root waiting there; FIFOs and tar waiting here
begin    it stands still: the last round of its disks begins; CRIU writes memory into FIFOs
finish   CRIU has written everything: the rest of its files; there, it is restored
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pyvz.container import criuimages, fifos
from pyvz.container.fifos import Fifos
from pyvz.container.frame import NAME as FRAME
from pyvz.container.growing import Growing
from pyvz.errors import NotNow
from pyvz.migration import files
from pyvz.migration.dial import Peer
from pyvz.migration.wire import Channel
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations import livedump
from pyvz.operations.node import Node
from pyvz.operations.outgoing import Outgoing
from pyvz.operations.sideline import Sideline

_ROUND_TIMEOUT: Final = 7 * 86400.0  # a dead connection is seen at once


class Standstill:
    """One of them; a context manager, which calls off what still goes on."""

    def __init__(
        self,
        node: Node,
        env: Environment,
        peer: Peer,
        disks: list[Outgoing],
        progress: Progress,
    ) -> None:
        self._node, self._env, self._peer = node, env, peer
        self._disks, self._progress = disks, progress
        self._stack = ExitStack()
        self._round = Sideline("last-round", self._last_round, progress)
        self._sender: files.Sender | None = None
        self._reader: Fifos | Growing | None = None
        self._begun = False
        self.disk = 0  # bytes of the last round

    def __enter__(self) -> Standstill:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        with self._stack:
            if isinstance(error, NotNow) and self._begun:
                # Another dump follows: what is half sent of the disks goes to its end first.
                self._round.result(self._progress.check, _ROUND_TIMEOUT)
            self._round.call_off()

    @property
    def memory(self) -> int:
        """Bytes of the images."""
        return self._sender.total if self._sender else 0

    def ready(self, images: Path, used: int, pages: Channel | None) -> None:
        """Have everything wait on both sides; `used`: bytes of memory."""
        self._progress.stage("Preparing")
        channel = self._peer.new_channel()
        self._peer.call(
            "ready",
            frame=(images / FRAME).read_text(),
            memory=used,
            channel=channel.number,
            pages=None if pages is None else pages.number,
            progress=self._progress,
        )
        self._sender = files.Sender(channel, self._progress, used)
        if livedump.in_memory(self._node, images):
            self._reader = Growing(images, self._sender.piece, piece=files.SIZE)
        else:
            count = fifos.count_for(len(self._node.cgroups.pids(self._env.uuid)))
            self._reader = Fifos(images, count, self._sender.piece, piece=files.SIZE)
        self._stack.callback(self._reader.close)
        self._reader.start()
        for each in self._disks:
            each.arm()

    def begin(self) -> None:
        """It stands still."""
        for each in self._disks:
            each.still()
        self._progress.stage("Copying memory")
        self._begun = True
        self._round.start()

    def finish(self, images: Path) -> None:
        """Send what is left; returns when everything of it is there."""
        assert self._reader is not None  # noqa: S101  ready() was called
        assert self._sender is not None  # noqa: S101
        for each in self._disks:
            self._progress.stage(f"Copying {each.disk.name}: last round")
        self.disk = self._round.result(self._progress.check, _ROUND_TIMEOUT)
        if criuimages.has_links(images):  # CRIU has given files inside a name that had none
            self.disk += self._last_round(self._progress)
        for each in self._disks:
            each.finish()
        self._progress.stage("Sending memory")
        self._reader.drain()
        self._sender.rest(images)

    def restore(self, meanwhile: Callable[[], None]) -> None:
        """Have everything restored there; nothing of it runs yet."""
        self._progress.stage("Restoring")
        self._peer.ask("restore")
        meanwhile()
        self._peer.answer(progress=self._progress)

    def failure(self) -> BaseException | None:
        """What the dump has failed of, when it was we."""
        return None if self._reader is None else self._reader.failure

    def _last_round(self, progress: Progress) -> int:
        return sum(each.send(still=True, progress=progress) for each in self._disks)
