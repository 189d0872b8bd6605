"""The memory of a running container in rounds, before it stands still (pre-copy).

    <images>/1        all of it, sent while CRIU writes it
    <images>/2        what changed since          parent -> ../1
    <images>/         what the dump finds changed   parent -> 2

Only where the kernel tells which pages were written to (soft-dirty), which is asked of CRIU.  CRIU
halts the processes for each round only until it has their pages in pipes.  Here the files of pages
stay empty: what the next round asks of its parent is which pages it has, not what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from pyvz.container.criurequest import DumpRequest
from pyvz.container.frame import Frame
from pyvz.container.growing import Growing
from pyvz.migration import files, iterate
from pyvz.migration.dial import Peer
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations.node import Node

PAGE: Final = 4096  # bytes
UNTRACKED: Final = "this node's kernel does not tell which pages change (soft-dirty)"
UNKNOWN_THERE: Final = "pyvz on the other node is too old for rounds of memory"


def reason_against(node: Node, there: dict[str, object]) -> str:
    """Return why memory cannot go in rounds, "" when it can.  there: what the other node said."""
    if not node.checkpoint.features().mem_track:
        return UNTRACKED
    return "" if there.get("memory_rounds") else UNKNOWN_THERE


class Precopy:
    """The rounds of one migration; `pages` has the pages of each."""

    def __init__(self, node: Node, env: Environment, peer: Peer, progress: Progress) -> None:
        self._node, self._env = node, env
        self._peer, self._progress = peer, progress
        self.pages: list[int] = []
        self.bytes = 0

    def run(
        self, images: Path, frame: Frame, used: int, between: Callable[[], None] = lambda: None
    ) -> str:
        """Send rounds as long as they pay; returns the name of the last one below `images`.

        used: bytes of memory.  between: is called after the first round, which takes longest.
        Raises CheckpointError, Refused, ConnectionBroken, Cancelled: it runs as before.
        """
        while iterate.goes_on(self.pages):
            self._round(images, frame, used)
            if len(self.pages) == 1:
                between()
        return str(len(self.pages))

    def _round(self, images: Path, frame: Frame, used: int) -> None:
        number = len(self.pages) + 1
        self._progress.stage(f"Copying memory: round {number}")
        place = images / str(number)
        place.mkdir()
        place.chmod(0o755)  # CRIU opens it as the container's root, too
        channel = self._peer.new_channel()
        self._peer.call(
            "memory", round=number, size=used, channel=channel.number, progress=self._progress
        )
        expected = used if number == 1 else self.pages[-1] * PAGE
        sender = files.Sender(channel, self._progress, expected)
        reader = Growing(place, sender.piece, piece=files.SIZE, keep=True)
        parent = "" if number == 1 else f"../{number - 1}"
        request = DumpRequest(frame, track_mem=True, parent=parent)
        engine = self._node.checkpoint
        with closing(reader), engine.worker(self._env.uuid, place) as worker:
            reader.start()
            stats = engine.pre_dump(worker, request)
            read = reader.drain()
            sender.rest(place)
        self.bytes += sender.total
        self.pages.append(sum(read.values()) // PAGE if stats is None else stats.written)
