"""A btrfs disk with its snapshots goes to another file system as streams of differences.

Copied file by file, each snapshot would be whole again over there.  `btrfs send -p` says what one
has that the one before has not, and `btrfs receive` applies it to its copy of that one, so that
they share over there what they share here.

    <home>/subvol.sending/<name>     here: read-only, named as it is to be called over there
    <new home>/...                   there: <name>, made by `btrfs receive`
    <new home>/subvol.receiving/     of another node: {guid} of each snapshot, and <n> for the
                                     rounds of a disk that is still written to

What is sent has to be read-only and without subvolumes of its own, which a stream leaves out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from pyvz.errors import StorageError
from pyvz.image.disk import normal_guid
from pyvz.linux import btrfs, run
from pyvz.model.task import Progress

FOLDER: Final = "subvol.sending"
RECEIVING: Final = "subvol.receiving"
_END_TIMEOUT: Final = 600.0  # for what it has said, or read, to be on the disk


class Sending:
    """A chain of subvolumes of one disk that are sent; a context manager."""

    def __init__(self, home: Path, progress: Progress) -> None:
        self._folder = home / FOLDER
        self._progress = progress
        self._last: Path | None = None

    def __enter__(self) -> Sending:
        """Return itself; what a killed one left goes."""
        forget(self._folder.parent)
        self._folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was only there to be sent."""
        forget(self._folder.parent)

    def send(self, source: Path, new: Path) -> None:
        """Make `new`, on another btrfs, what the subvolume `source` is: read-only.

        What they have in common is shared with what was sent before.
        Raises CommandFailed, NoSpace, Cancelled, OSError: there is no `new` then.
        """
        held = self._folder / new.name
        btrfs.snapshot(source, held, readonly=True)
        parent: list[str | Path] = [] if self._last is None else ["-p", self._last]
        try:
            _pipe(["btrfs", "send", "-q", *parent, held], new.parent, self._progress)
        except BaseException:
            btrfs.destroy(new)
            raise
        self._last = held


class Source:
    """Writes a disk down for another node, round by round: `streams.StreamSource`.

    kept: its snapshots, named by their ids, in the order in which they were made.
    """

    def __init__(self, home: Path, subvolume: Path, kept: Sequence[Path] = ()) -> None:
        self._folder = home / FOLDER
        self._subvolume = subvolume
        self._kept = list(kept)
        self._last: Path | None = None
        self._number = 0

    def arm(self) -> None:
        """Nothing can be begun before the moment comes."""

    def round(self, *, still: bool = False) -> Iterator[AbstractContextManager[int]]:
        """Yield the snapshots, each once, then the disk as it is when its turn comes."""
        del still
        while self._kept:
            yield self._stream(self._kept[0])
            del self._kept[0]
        self._folder.mkdir(mode=0o700, exist_ok=True)
        held = self._folder / str(self._number)
        btrfs.snapshot(self._subvolume, held, readonly=True)
        self._number += 1
        yield self._stream(held)

    @contextlib.contextmanager
    def _stream(self, held: Path) -> Iterator[int]:
        """Let `btrfs send` say what a subvolume has and the one sent before has not."""
        parent: list[str | Path] = [] if self._last is None else ["-p", self._last]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            argv = ["btrfs", "send", "-q", *parent, held]
            with run.spawn(argv, stdout_fd=writer) as sender:
                os.close(writer)
                writer = -1
                yield reader
                _ended(sender, "send")
        finally:
            _close(reader, writer)
        if self._last is not None and self._last.parent == self._folder:
            btrfs.destroy(self._last)
        self._last = held


class Sink:
    """Makes subvolumes of what a Source says: `streams.StreamSink`."""

    def __init__(self, home: Path) -> None:
        self._folder = home / RECEIVING
        self._rounds: list[Path] = []
        self.kept: list[Path] = []  # snapshots, in the order in which they came

    def take(self, feed: Callable[[int], None]) -> None:
        """Let `btrfs receive` apply a stream; raises CommandFailed, NoSpace, ProtocolError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # It sees nothing beside the directory (-C), and ends with the stream (-e).
            argv: list[str | Path] = ["btrfs", "receive", "-q", "-e", "-C", self._folder]
            with run.spawn(argv, stdin_fd=reader) as receiver:
                os.close(reader)
                reader = -1
                with contextlib.suppress(BrokenPipeError):  # its own words say why
                    feed(writer)
                os.close(writer)
                writer = -1
                _ended(receiver, "receive")
        finally:
            _close(reader, writer)
        self._sort(self._arrived())

    def _arrived(self) -> Path:
        known = {*self._rounds, *self.kept}
        new = [entry for entry in self._folder.iterdir() if entry not in known]
        if len(new) != 1 or not btrfs.is_subvolume(new[0]):
            raise StorageError("A stream of the disk had no subvolume in it, or several")
        return new[0]

    def _sort(self, new: Path) -> None:
        """Tell a snapshot from a round, which takes the place of the one before it."""
        if not new.name.isdecimal():
            normal_guid(new.name)  # raises UsageError
            self.kept.append(new)
            return
        for before in self._rounds:
            btrfs.destroy(before)
        self._rounds = [new]

    @property
    def newest(self) -> Path:
        """Return the subvolume of the last round; raises StorageError (there was none)."""
        if not self._rounds:
            raise StorageError("The streams of the disk had no disk in them")
        return self._rounds[0]


def _ended(process: run.Process, verb: str) -> None:
    if code := process.wait(_END_TIMEOUT):
        words = process.stderr.read() if process.stderr else b""
        told = run.Result(code, "", words.decode(errors="replace"))
        raise run.failure(["btrfs", verb], told)


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def possible(subvolumes: list[Path]) -> bool:
    """Whether all of them can be sent: by the program, and with all that is in them."""
    installed = shutil.which("btrfs", path=run.ENVIRONMENT["PATH"]) is not None
    return installed and not any(btrfs.nested(each) for each in subvolumes)


def forget(home: Path) -> None:
    """Remove what a send left in a home, or a receive.  Idempotent."""
    for folder in (home / FOLDER, home / RECEIVING):
        if folder.is_dir() and not folder.is_symlink():
            for entry in list(folder.iterdir()):
                btrfs.destroy(entry)
            folder.rmdir()


def _pipe(send: run.Argv, target: Path, progress: Progress) -> None:
    """Let `btrfs receive` make in `target` what the program sends; the first failure counts."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    receive: list[str | Path] = ["btrfs", "receive", "-q", target]
    try:
        with run.spawn(send, stdout_fd=writer) as sender:
            os.close(writer)
            writer = -1
            # A sender whose reader has gone ends by itself, and one that fails ends the stream.
            run.run(receive, stdin_fd=reader, timeout=None, poll=progress.check)
            os.close(reader)
            reader = -1
            _ended(sender, "send")
    finally:
        _close(reader, writer)
