"""A disk that is a tree of files, over a channel: incremental archives, round by round.

It goes in the frames of stream.py, an archive (linux/increments.py) for each round.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pyvz.errors import CommandFailed, MigrationError
from pyvz.linux import increments
from pyvz.migration import stream
from pyvz.migration.stream import DATA, END, ROUND, UNITS
from pyvz.migration.wire import Channel, Reader
from pyvz.model.task import Progress

STALL_TIMEOUT: Final = 300.0


class Sender:
    """Sends one tree; a context manager.

    state: a directory that is made for tar's list, and gone at the end.
    """

    def __init__(self, channel: Channel, state: Path) -> None:
        self._channel = channel
        self._poll: Callable[[], None] | None = None
        self._writer = increments.Writer(state)
        self.rounds = 0
        self.total = 0
        self.last = 0

    def __enter__(self) -> Sender:
        self._writer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def arm(self, root: Path, names: tuple[str, ...] = (".",)) -> None:
        """Start the program of the next round, unless it waits; it reads nothing before `send`."""
        self._writer.arm(root, names)

    def send(
        self,
        root: Path,
        progress: Progress,
        *,
        still: bool,
        names: tuple[str, ...] = (".",),
        expected: int = 0,
    ) -> None:
        """Send a round; still: nothing may change now, so what changes is an error.

        expected: about how many bytes the first round has.
        """
        expected = 0 if self.rounds else expected
        before = self.total
        self._poll = progress.check
        silent = f"tar has sent nothing for {STALL_TIMEOUT:g} s"
        with (
            _told(),
            self._writer.archive(root, names, still=still, timeout=STALL_TIMEOUT) as source,
        ):
            while chunk := stream.read(source, progress.check, STALL_TIMEOUT, silent):
                self._write(UNITS.pack(DATA, len(chunk)))
                self._write(chunk)
                self.total += len(chunk)
                done = self.total - before
                progress.advance(done, max(expected, done) if expected else None)
        self._write(UNITS.pack(ROUND, self.rounds))
        self.rounds += 1
        self.last = self.total - before

    def _write(self, data: bytes) -> None:
        self._channel.write(data, poll=self._poll)

    def finish(self) -> None:
        """Say that all was sent."""
        self._write(bytes([END]))
        self._channel.end()


def receive(channel: Channel, root: Path, timeout: float) -> Iterator[int]:
    """Write what a Sender sends below the directory ROOT; yields each round's number at its end.

    Raises NoSpace, MigrationError, ProtocolError.
    """
    reader = Reader(channel, timeout)
    while True:
        with _told(), increments.reading(root) as tar:  # ready when a round comes
            kind = reader.exactly(1)[0]
            if kind == END:
                return
            number = None
            with contextlib.suppress(BrokenPipeError):
                number = _round(reader, kind, tar.stdin())
            tar.close()
            tar.ended(STALL_TIMEOUT)
            if number is None:
                raise tar.failed(0)
        yield number


def _round(reader: Reader, kind: int, fd: int) -> int:
    """Feed one archive; returns the round's number."""

    def write(data: bytes) -> None:
        stream.write(fd, data, STALL_TIMEOUT, "tar takes no more data")

    os.set_blocking(fd, False)
    return stream.forward(reader, kind, write, "tree")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say what was tried when tar fails."""
    try:
        yield
    except CommandFailed as error:
        text = f"The files could not be copied: {error.message}"
        raise MigrationError(text, details=error.details) from error
