"""A tree as GNU tar's incremental archives: each has what has changed since the one before.

tar keeps a list of what it has seen.  A later archive holds the files whose change time (ctime,
which no guest can set) is not before the one before was begun, and for each directory what is in
it, so that what is gone, goes.  The last one is written while nothing runs that could change files.
Both programs see nothing but the tree (confined.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple

from pyvz.errors import CommandFailed, NoSpace
from pyvz.linux import file, run
from pyvz.linux.archive import TAR_OPTIONS

TREE: Final = "tree"  # what a tree is called in its archive, when nothing else is asked for
_SEEN: Final = "seen"
_TAR: Final = "/bin/tar"
# Kernels before 6.13 stamp files with the time of the last tick, which may lie before our start.
_MARGIN: Final = 1
_CHANGED: Final = 1  # exit status of tar: a file changed, or went, while it was read


class Program(NamedTuple):
    """A tar at work, and what it complains of."""

    process: run.Process
    errors: IO[bytes]

    def stdout(self) -> int:
        """Return the pipe that it writes to."""
        assert self.process.stdout is not None  # noqa: S101  (asked for pipes)
        return self.process.stdout.fileno()

    def stdin(self) -> int:
        """Return the pipe that it reads from."""
        assert self.process.stdin is not None  # noqa: S101  (asked for pipes)
        return self.process.stdin.fileno()

    def close(self) -> None:
        """Say that nothing more comes."""
        assert self.process.stdin is not None  # noqa: S101  (asked for pipes)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def ended(self, timeout: float, *, allowed: frozenset[int] = frozenset({0})) -> None:
        """Wait for its end; raises CommandFailed, NoSpace, Timeout."""
        code = self.process.wait(timeout)
        if code not in allowed:
            raise self.failed(code)

    def failed(self, code: int) -> CommandFailed | NoSpace:
        """Return the error that says what went wrong."""
        size = os.fstat(self.errors.fileno()).st_size
        words = os.pread(self.errors.fileno(), 4000, max(0, size - 4000)).decode("utf-8", "replace")
        return run.failure(["tar"], run.Result(code, "", words))


class Writer:
    """Writes one tree down again and again; a context manager.

    state: a directory that is made for tar's list, and gone at the end.
    below: what the tree is called in the archive, and so where it comes to be when that is read;
    "": its files are there themselves.
    """

    def __init__(self, state: Path, below: str = "") -> None:
        self._state = state
        self._below = below
        self._armed = contextlib.ExitStack()
        self._waiting: Program | None = None

    def __enter__(self) -> Writer:
        file.remove_tree(self._state)
        self._state.mkdir(mode=0o700, parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End a program that waits, and forget what was seen."""
        self._armed.close()
        file.remove_tree(self._state)

    def arm(self, root: Path, names: tuple[str, ...] = (".",)) -> None:
        """Start the program of the next archive, unless it waits; it reads nothing before."""
        if self._waiting is not None:
            return
        into = "--directory=/" if self._below else f"--directory=/{TREE}"
        argv = [
            *(_TAR, "--create", *TAR_OPTIONS, "--sparse", "--format=posix", "--no-check-device"),
            *(f"--listed-incremental=/state/{_SEEN}", "--warning=no-file-ignored"),
            *("--warning=no-file-changed", "--warning=no-file-removed", into),
            *("--", *([self._below] if self._below else names)),
        ]
        spawned = _spawned(root, self._state, argv, below=self._below, gate=True)
        self._waiting = self._armed.enter_context(spawned)

    @contextlib.contextmanager
    def archive(
        self, root: Path, names: tuple[str, ...] = (".",), *, still: bool, timeout: float
    ) -> Iterator[int]:
        """Yield a pipe that says what has changed below `root` since the archive before.

        It has to be read to its end.  still: nothing may change now, so what does is an error.
        timeout: seconds for the program to end.  Raises CommandFailed.
        """
        if not still:
            # Pages that are mapped and dirty change without a trace until they were written out
            # once: then the next write is a fault, which renews the times (page_mkwrite).
            file.syncfs(root)
        self.arm(root, names)
        assert self._waiting is not None  # noqa: S101
        program, self._waiting = self._waiting, None
        with self._armed:
            program.close()
            yield program.stdout()
            program.ended(timeout, allowed=frozenset({0} if still else {0, _CHANGED}))
        self._earlier()

    def _earlier(self) -> None:
        """Let the next archive begin a little before this one did (GNU tar manual, D.2)."""
        path = self._state / _SEEN
        version, _, rest = path.read_bytes().partition(b"\n")
        seconds, _, rest = rest.partition(b"\0")
        start = str(int(seconds) - _MARGIN).encode()
        path.write_bytes(b"\n".join((version, b"\0".join((start, rest)))))


def reading(root: Path) -> contextlib.AbstractContextManager[Program]:
    """Yield the program that applies one archive, which it is to be fed, below the directory."""
    argv = [
        *(_TAR, "--extract", *TAR_OPTIONS, "--incremental", "--preserve-permissions"),
        *("--same-owner", "--numeric-owner", "--delay-directory-restore"),
        *("--warning=no-timestamp", f"--directory=/{TREE}"),
    ]
    return _spawned(root, None, argv)


@contextlib.contextmanager
def _spawned(
    root: Path, state: Path | None, argv: list[str], *, below: str = "", gate: bool = False
) -> Iterator[Program]:
    """Run tar on a tree that it sees nothing beside; gate: not before its stdin is closed."""
    place = os.fspath(state) if state is not None else "-"
    words = [sys.executable, "-P", "-m", "pyvz.linux.confined", *(["--gate"] if gate else [])]
    words += ["--as", below] if below else []
    words += [os.fspath(root), place, *argv]
    with tempfile.TemporaryFile(buffering=0) as errors:
        options: run.SpawnOptions = {"stderr_fd": errors.fileno(), "env": _environment()}
        with run.spawn(words, input_pipe=True, **options) as process:
            yield Program(process, errors)


def _environment() -> dict[str, str]:
    """The program finds this package where we have found it."""
    return {"PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2])}
