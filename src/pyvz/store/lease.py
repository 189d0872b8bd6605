"""Leases: who may change an environment at this moment.

``<LOCKDIR>/<uuid>.lck`` holds "pid\\naction\\n", as the original's lock files do, and is locked by
flock(2), so an offline tool and vzd exclude each other and a lock dies with its holder: there are
no stale locks.  Inside one process threads wait for each other in memory and only one of them
competes for the file.

The file is unlinked by its holder *before* the lock is let go, so that the directory shows who
works on what.  That is free of races because every taker, once it has the lock, compares the inode
it holds with the one at the path and begins again when they differ.  After a kill -9 the file
stays behind unlocked, and the next taker uses it.

A lease is not re-entrant: a thread that takes the same lease twice has a defect, and is told so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pyvz.errors import InternalError, Locked
from pyvz.store.nodeconf import lock_directory
from pyvz.store.paths import Paths

_POLL = 0.02  # seconds between two tries while another process holds it
_held: dict[Path, Lease] = {}  # by path; guarded by _changed
_changed = threading.Condition()


class Holder(NamedTuple):
    """Who holds a lease: process, what it does, and since when (seconds since the epoch)."""

    pid: int
    action: str
    since: float


class Lease:
    """The right to change one environment; proof of it is an argument of mutating functions.

    with Lease.take(paths, uuid, "starting") as lease: ...
    """

    def __init__(self, path: Path, uuid: str, action: str, label: str) -> None:
        self.path = path
        self.uuid = uuid
        self.action = action
        self._label = label
        self._fd = -1
        self._thread = threading.get_ident()

    @classmethod
    def take(
        cls, paths: Paths, uuid: str, action: str, *, timeout: float = 0.0, label: str = ""
    ) -> Self:
        """Take the lease of UUID to do ACTION (one word: "starting"); wait TIMEOUT seconds at most.

        label: what people call what has that UUID.

        Raises Locked, naming holder and action, when it cannot be had in time; InternalError when
        this very thread holds it.
        """
        path = lock_directory(paths) / f"{uuid}.lck"
        lease = cls(path, uuid, action, label or uuid)
        deadline = time.monotonic() + timeout
        lease._enter(deadline)
        try:
            lease._lock_file(deadline)
        except BaseException:
            lease._leave()
            raise
        return lease

    def note(self, action: str) -> None:
        """Tell others that we do something else now ("starting" -> "mounting")."""
        self.action = action
        self._write(self._fd)

    def release(self) -> None:
        """Give it back; a second time is fine."""
        if self._fd < 0:
            return
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)
            self._fd = -1
            self._leave()

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._fd >= 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _enter(self, deadline: float) -> None:
        """Become the one thread of this process that may compete for the file."""
        with _changed:
            while (other := _held.get(self.path)) is not None:
                if other._thread == threading.get_ident():
                    raise InternalError(
                        f"the lease of {self.uuid} was taken twice by one thread "
                        f"('{other.action}', then '{self.action}')"
                    )
                left = deadline - time.monotonic()
                if left <= 0:
                    written = read_holder(self.path)
                    since = written.since if written else 0.0
                    raise self._refused(Holder(os.getpid(), other.action, since))
                _changed.wait(left)
            _held[self.path] = self

    def _leave(self) -> None:
        with _changed:
            if _held.get(self.path) is self:
                del _held[self.path]
            _changed.notify_all()

    def _lock_file(self, deadline: float) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                if _try_flock(fd) and _same_file(fd, self.path):
                    self._write(fd)
                    self._fd = fd
                    return
            finally:
                if self._fd != fd:
                    os.close(fd)
            if time.monotonic() >= deadline:
                raise self._refused(read_holder(self.path))
            time.sleep(_POLL)

    def _write(self, fd: int) -> None:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n{self.action}\n".encode(), 0)

    def _refused(self, holder: Holder | None) -> Locked:
        if holder is None:  # it holds the lock and has not written yet who it is
            return Locked(f"{self._label} is busy", hint="Try again in a moment.")
        seconds = f" for {max(0, time.time() - holder.since):.0f} s" if holder.since else ""
        return Locked(
            f"{self._label} is busy: {holder.action or 'work'} by process {holder.pid}{seconds}",
            hint="Try again when that has ended, or wait for it with --timeout.",
        )


def holder(paths: Paths, uuid: str) -> Holder | None:
    """Return who holds the lease of UUID at this moment, or None; takes no lock."""
    path = lock_directory(paths) / f"{uuid}.lck"
    found = read_holder(path)
    return found if found and _is_locked(path, found.pid) else None


def read_holder(path: Path) -> Holder | None:
    """Return what the lock file at PATH says, or None when it is gone or empty."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            pid, action, *_ = [*file.read(256).split("\n"), "", ""]
            return Holder(int(pid), action, os.fstat(file.fileno()).st_mtime)
    except (FileNotFoundError, ValueError):
        return None


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return False
    return True


def _same_file(fd: int, path: Path) -> bool:
    """Whether the locked file is still the one at the path (its last holder unlinks it)."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _is_locked(path: Path, pid: int) -> bool:
    """Whether process PID holds a flock on PATH; asks /proc/locks, which disturbs nobody.

    A line: number, FLOCK, ADVISORY, WRITE, pid, device:inode, start, end (proc_locks(5)).  The
    device is not compared: on overlayfs and btrfs it differs from what stat(2) tells.
    """
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return False
    for line in Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if words[1:2] != ["FLOCK"] or len(words) < 6:
            continue
        if words[4] == str(pid) and words[5].rpartition(":")[2] == str(inode):
            return True
    return False
