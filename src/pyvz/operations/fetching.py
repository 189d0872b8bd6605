"""The memory of a container that runs here already comes from the node where it was (post-copy).

    criu lazy-pages --- PageLine === the other node's PageLine --- criu, which has dumped it

What the processes touch is fetched at once, all else one after the other.  When the fetcher ends,
the kernel shows zeros where a page is missing: so it is never ended before the container is.  It
holds both ends of its socket, so that it waits for ever when vzd is killed, and so do the
processes; the next vzd ends them, and then it (`end_fetcher`).
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyvz.container.checkpoint import Checkpoint
from pyvz.errors import MigrationError, RestoreError
from pyvz.linux import file, process, run
from pyvz.migration.pageline import PageLine
from pyvz.migration.wire import Channel

log = logging.getLogger(__name__)

_NOTE: Final = "fetcher.json"
_PATIENCE: Final = 60.0  # seconds until it listens
_TICK: Final = 0.002


class Fetching:
    """One of them."""

    def __init__(self, engine: Checkpoint, images: Path, channel: Channel) -> None:
        self._engine = engine
        self._images = images
        self._line = PageLine(channel, serving=False)
        self._fetcher: run.Process | None = None

    def start(self) -> None:
        """Start what fetches."""
        fds = (self._line.theirs.fileno(), self._line.ours.fileno())
        self._fetcher = self._engine.lazy_pages(self._images, *fds)
        note = {"pid": self._fetcher.pid, "started": process.start_time(self._fetcher.pid)}
        file.write_atomic(self._images / _NOTE, json.dumps(note), 0o600)
        self._line.start()

    def listens(self) -> None:
        """Wait until CRIU, which restores, can reach it; raises RestoreError."""
        assert self._fetcher is not None  # noqa: S101  start() was called
        deadline = time.monotonic() + _PATIENCE
        while not (self._images / "lazy-pages.socket").exists():
            if self._fetcher.poll() is not None or time.monotonic() > deadline:
                raise RestoreError("CRIU does not fetch pages", details=self._log())
            time.sleep(_TICK)

    def wait(self, end: Callable[[], None]) -> None:
        """Wait until everything is here; `end` is called at once when it will not be.

        Raises MigrationError then.
        """
        assert self._fetcher is not None  # noqa: S101  start() was called
        while (code := self._fetcher.poll()) is None:
            if self._line.broken.wait(_TICK) and self._fetcher.poll() is None:
                end()
                raise MigrationError("The connection broke while its memory was coming")
        if code:
            end()
            raise MigrationError("CRIU failed while memory was coming", details=self._log())
        self.close()

    def close(self) -> None:
        """End what fetches: the container has ended, or has everything.  Idempotent."""
        if self._fetcher is not None:
            self._fetcher.end(grace=0.0)
        self._line.close()

    def _log(self) -> str:
        with suppress(OSError):
            lines = (self._images / "lazy-pages.log").read_text(errors="replace").splitlines()
            return "\n".join([line for line in lines if "Error" in line][-5:])
        return ""


def end_fetcher(images: Path) -> None:
    """End the fetcher of a vzd that was killed, after its container.  None there: fine."""
    try:
        note = json.loads((images / _NOTE).read_text())
        handle = process.Pidfd(int(note["pid"]), int(note["started"]))
    except (OSError, ValueError, KeyError, ProcessLookupError):
        return
    with handle:
        handle.signal(signal.SIGKILL)
        handle.wait(10.0)
