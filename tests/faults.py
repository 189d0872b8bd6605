"""Failure at every step: an error, or death, at the n-th thing that a verb changes.

Steps are seen by Python's audit hook: every file made, opened for writing, renamed or removed and
every program started is an event that comes before the act and may refuse it.  So nothing is
mocked: the verb runs as it is and one real call of it fails.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

_CHANGES = frozenset(
    {
        *("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link"),
        *("os.chmod", "os.chown", "os.setxattr", "subprocess.Popen", "fcntl.ioctl"),
    }
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

Act = Callable[[str], None]
_hook: list[Callable[[str, tuple[object, ...]], None]] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _hook:
        _hook[0](event, args)


sys.addaudithook(_audit)  # for the life of the process: a hook cannot be taken away


def _changes(event: str, args: tuple[object, ...], below: str) -> bool:
    if event == "open":
        path, _, flags = args
        return isinstance(flags, int) and bool(flags & _WRITING) and below in str(path)
    return event in _CHANGES


@contextmanager
def at_step(number: int, act: Act, below: Path) -> Iterator[list[str]]:
    """Have `act` called instead of the `number`-th change; yields the list of changes so far."""
    seen: list[str] = []

    def look(event: str, args: tuple[object, ...]) -> None:
        # That a record cannot be forgotten is for the tests of the journal itself.
        forgetting = event == "os.remove" and "/journal/" in str(args[0])
        if forgetting or not _changes(event, args, os.fspath(below)):
            return
        seen.append(f"{event} {args[:2]}")
        if len(seen) == number:
            act(seen[-1])

    _hook[:] = [look]
    try:
        yield seen
    finally:
        _hook.clear()


def strides(some: int) -> list[ParameterSet]:
    """How far apart the steps are: every one in the long run, every `some`-th in the short one."""
    return [pytest.param(1, marks=pytest.mark.long, id="all"), pytest.param(some, id="some")]


def steps(stride: int, most: int, seed: int) -> range:
    """Return the steps to act at.  seed: where the short run begins, so that verbs differ."""
    return range(1 + seed % stride, most, stride)


def fail(step: str) -> None:
    """An error of the disk."""
    raise OSError(errno.EIO, os.strerror(errno.EIO), step)


def full(step: str) -> None:
    """No space left, once."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), step)


def die(_step: str) -> None:
    """kill -9 of ourselves."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(number: int, verb: Callable[[], object], below: Path) -> bool:
    """Run `verb` in a child that dies at a step; False when it came to its end before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with at_step(number, die, below):
                verb()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}, f"step {number}: the verb failed by itself"
    return code != 0


def world(root: Path, *, without: tuple[str, ...] = ()) -> dict[str, object]:
    """Everything below `root`: kinds, modes, contents, links."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory, name)
            relative = os.fspath(path.relative_to(root))
            if relative.startswith(without):
                continue
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[relative] = (oct(status.st_mode), content)
    return found


def difference(new: dict[str, object], old: dict[str, object]) -> list[str]:
    """What is there more, less, or otherwise."""
    names = sorted(new.keys() | old.keys())
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in names
        if new.get(name) != old.get(name)
    ]
