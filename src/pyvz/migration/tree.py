"""A disk that is a tree of files, over a channel: GNU tar's incremental archives, round by round.

It goes in the frames of stream.py, an archive for each round.

tar keeps a list of what it has seen.  A later round holds the files whose change time (ctime, which
no guest can set) is not before the round before began, and for each directory what is in it, so
that what is gone, goes.  The last round is read while nothing runs that could write.
Both programs see nothing but the tree (confined.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from pyvz.errors import MigrationError, NoSpace
from pyvz.linux import file, run
from pyvz.linux.archive import TAR_OPTIONS
from pyvz.migration import stream
from pyvz.migration.stream import DATA, END, ROUND, UNITS
from pyvz.migration.wire import Channel, Reader
from pyvz.model.task import Progress

STALL_TIMEOUT: Final = 300.0
_SEEN: Final = "seen"
_TAR: Final = "/bin/tar"
# Kernels before 6.13 stamp files with the time of the last tick, which may lie before our start.
_MARGIN: Final = 1
_CHANGED: Final = 1  # exit status of tar: a file changed, or went, while it was read


class Sender:
    """Sends one tree; a context manager.

    state: a directory that is made for tar's list, and gone at the end.
    """

    def __init__(self, channel: Channel, state: Path) -> None:
        self._channel = channel
        self._state = state
        self._poll: Callable[[], None] | None = None
        self._armed = contextlib.ExitStack()
        self._waiting: tuple[run.Process, IO[bytes]] | None = None
        self.rounds = 0
        self.total = 0
        self.last = 0

    def __enter__(self) -> Sender:
        file.remove_tree(self._state)
        self._state.mkdir(mode=0o700, parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._armed.close()
        file.remove_tree(self._state)

    def arm(self, root: Path, names: tuple[str, ...] = (".",)) -> None:
        """Start the program of the next round, unless it waits; it reads nothing before `send`."""
        if self._waiting is not None:
            return
        argv = [
            *(_TAR, "--create", *TAR_OPTIONS, "--sparse", "--format=posix", "--no-check-device"),
            *(f"--listed-incremental=/state/{_SEEN}", "--warning=no-file-ignored"),
            *("--warning=no-file-changed", "--warning=no-file-removed", "--directory=/tree"),
            *("--", *names),
        ]
        spawned = _spawned(root, self._state, argv, gate=True)
        self._waiting = self._armed.enter_context(spawned)

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
        if self._waiting is None:
            self.arm(root, names)
        assert self._waiting is not None  # noqa: S101
        (process, errors), self._waiting = self._waiting, None
        with self._armed:
            assert process.stdin is not None  # noqa: S101  (asked for pipes)
            assert process.stdout is not None  # noqa: S101
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            source = process.stdout.fileno()
            silent = f"tar has sent nothing for {STALL_TIMEOUT:g} s"
            while chunk := stream.read(source, progress.check, STALL_TIMEOUT, silent):
                self._write(UNITS.pack(DATA, len(chunk)))
                self._write(chunk)
                self.total += len(chunk)
                done = self.total - before
                progress.advance(done, max(expected, done) if expected else None)
            code = process.wait(STALL_TIMEOUT)
            if code not in ({0} if still else {0, _CHANGED}):
                raise _failed(code, errors)
        self._earlier()
        self._write(UNITS.pack(ROUND, self.rounds))
        self.rounds += 1
        self.last = self.total - before

    def _write(self, data: bytes) -> None:
        self._channel.write(data, poll=self._poll)

    def _earlier(self) -> None:
        """Let the next round begin a little before this one did (GNU tar manual, D.2)."""
        path = self._state / _SEEN
        version, _, rest = path.read_bytes().partition(b"\n")
        seconds, _, rest = rest.partition(b"\0")
        start = str(int(seconds) - _MARGIN).encode()
        path.write_bytes(b"\n".join((version, b"\0".join((start, rest)))))

    def finish(self) -> None:
        """Say that all was sent."""
        self._write(bytes([END]))
        self._channel.end()


def receive(channel: Channel, root: Path, timeout: float) -> Iterator[int]:
    """Write what a Sender sends below the directory ROOT; yields each round's number at its end.

    Raises NoSpace, MigrationError, ProtocolError.
    """
    argv = [
        *(_TAR, "--extract", *TAR_OPTIONS, "--incremental", "--preserve-permissions"),
        *("--same-owner", "--numeric-owner", "--delay-directory-restore"),
        *("--warning=no-timestamp", "--directory=/tree"),
    ]
    reader = Reader(channel, timeout)
    while True:
        with _spawned(root, None, argv) as (process, errors):  # ready when a round comes
            kind = reader.exactly(1)[0]
            if kind == END:
                return
            assert process.stdin is not None  # noqa: S101
            number = None
            with contextlib.suppress(BrokenPipeError):
                number = _round(reader, kind, process.stdin)
            process.stdin.close()
            code = process.wait(STALL_TIMEOUT)
            if code or number is None:
                raise _failed(code, errors)
        yield number


def _round(reader: Reader, kind: int, sink: IO[bytes]) -> int:
    """Feed one archive; returns the round's number."""
    fd = sink.fileno()

    def write(data: bytes) -> None:
        stream.write(fd, data, STALL_TIMEOUT, "tar takes no more data")

    os.set_blocking(fd, False)
    return stream.forward(reader, kind, write, "tree")


@contextlib.contextmanager
def _spawned(
    root: Path, state: Path | None, argv: list[str], *, gate: bool = False
) -> Iterator[tuple[run.Process, IO[bytes]]]:
    """Run tar on a tree that it sees nothing beside; gate: not before its stdin is closed."""
    place = os.fspath(state) if state is not None else "-"
    words = [sys.executable, "-P", "-m", "pyvz.migration.confined", *(["--gate"] if gate else [])]
    words += [os.fspath(root), place, *argv]
    with tempfile.TemporaryFile(buffering=0) as errors:
        options: run.SpawnOptions = {"stderr_fd": errors.fileno(), "env": _environment()}
        with run.spawn(words, input_pipe=True, **options) as process:
            yield process, errors


def _environment() -> dict[str, str]:
    """The program finds this package where we have found it."""
    return {"PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2])}


def _failed(code: int, errors: IO[bytes]) -> MigrationError | NoSpace:
    size = os.fstat(errors.fileno()).st_size
    words = os.pread(errors.fileno(), 4000, max(0, size - 4000)).decode("utf-8", "replace")
    if "No space left on device" in words or "Disk quota exceeded" in words:
        return NoSpace("There is no space left for the files", details=words)
    return MigrationError(f"The files could not be copied: tar ended with {code}", details=words)
