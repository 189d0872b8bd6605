"""A btrfs disk with its snapshots goes to another file system as streams of differences.

Copied file by file, each snapshot would be whole again over there.  `btrfs send -p` says what one
has that the one before has not, and `btrfs receive` applies it to its copy of that one, so that
they share over there what they share here.

    <home>/subvol.sending/<name>     here: read-only, named as it is to be called over there
    <new home>/...                   there: <name>, made by `btrfs receive`

What is sent has to be read-only and without subvolumes of its own, which a stream leaves out.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from pyvz.linux import btrfs, run
from pyvz.model.task import Progress

FOLDER: Final = "subvol.sending"


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


def possible(subvolumes: list[Path]) -> bool:
    """Whether all of them can be sent: by the program, and with all that is in them."""
    program = shutil.which("btrfs", path=run.ENVIRONMENT["PATH"])
    return program is not None and not any(btrfs.nested(each) for each in subvolumes)


def forget(home: Path) -> None:
    """Remove what a send left in a home.  Idempotent."""
    folder = home / FOLDER
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
            if code := sender.wait(run.GRACE):
                words = sender.stderr.read() if sender.stderr else b""
                told = run.Result(code, "", words.decode(errors="replace"))
                raise run.failure(["btrfs", "send"], told)
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)
