"""A lock file beside what it protects, held by flock(2).

The file is unlinked by its holder before it lets go, and a taker makes sure that what it locked is
still the file at the path: a lock dies with its holder, and nothing stays behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import Timeout
from pyvz.model.task import Progress

LOCK_TIMEOUT = 7200.0  # seconds; longer than any build may take
_POLL = 0.1


@contextlib.contextmanager
def lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of PATH (the file PATH.lock); wait for whoever has it.

    Raises Timeout after LOCK_TIMEOUT, Cancelled when the task is called off meanwhile.
    """
    fd = _take_lock(path.with_name(path.name + ".lock"), progress)
    try:
        yield
    finally:
        # Unlinked while we hold it: a taker checks that it locked the file that is there.
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        os.close(fd)


def _take_lock(path: Path, progress: Progress) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_TIMEOUT
    waiting = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
            os.close(fd)
            continue
        except BlockingIOError:
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise
        if not waiting:
            progress.stage("Waiting for another task on the same template")
            waiting = True
        progress.check()
        if time.monotonic() > deadline:
            raise Timeout(f"{path.name} was not given back within {LOCK_TIMEOUT:.0f} s")
        time.sleep(_POLL)
