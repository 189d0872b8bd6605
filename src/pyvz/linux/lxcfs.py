"""The daemon lxcfs(1) of one node: start it, find it again, ask whether it answers, end it.

<run>/lxcfs/mount     where it is mounted; only root may enter <run>/lxcfs, for it shows more of the
                      node than containers are given
<run>/lxcfs/daemon    "PID START": it outlives vzd, and the next vzd finds it by this
<run>/lxcfs/pid       lxcfs's own file, which it locks

Nothing but `answers` looks into the mount: a look-up in a FUSE file system waits for its daemon.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import StorageError, Timeout, Unsupported
from pyvz.linux import process, run, syscall
from pyvz.linux.file import write_atomic
from pyvz.linux.mount import MountEntry, mounts
from pyvz.linux.patience import looks
from pyvz.linux.process import Pidfd

PROGRAM = "lxcfs"
PACKAGE = "lxcfs"
FSTYPE = "fuse.lxcfs"
START_TIMEOUT = 60.0
END_TIMEOUT = 5.0
# Load averages; CPUs and their use by the CPU limit; readers are told apart by pidfd.
_OPTIONS = ("-f", "-l", "--enable-cfs", "--enable-pidfd")
# One file answers every container differently: neither its content nor its length may be kept.
_FUSE = "allow_other,direct_io,entry_timeout=0.5,attr_timeout=0"


class Daemon(NamedTuple):
    """A running lxcfs."""

    pid: int
    started: int


def available() -> bool:
    """Whether the node has the program."""
    return _program() is not None


def _program() -> str | None:
    return shutil.which(PROGRAM, path=run.ENVIRONMENT["PATH"])


class Lxcfs:
    """The lxcfs of one node; directory: <run>/lxcfs.  Not thread-safe."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.directory = directory
        self.mount = directory / "mount"
        self._record = directory / "daemon"
        self._log = log
        self._child: run.Process | None = None  # ours to reap

    def running(self) -> Daemon | None:
        """Return the daemon that runs for this node and is mounted."""
        if self._child is not None:
            self._child.poll()
        try:
            pid, started = map(int, self._record.read_text().split())
        except (OSError, ValueError):
            return None
        if not process.alive(pid, started) or self._entry() is None:
            return None
        return Daemon(pid, started)

    def start(self) -> Daemon:
        """Start a daemon and return when it is mounted; what a dead one has left goes away.

        Raises Unsupported (not installed), StorageError, Timeout.
        """
        program = _program()
        if program is None:
            raise Unsupported(
                "The program lxcfs is not installed",
                hint=f"Install the package {PACKAGE}, or set LXCFS=no in vz.conf.",
            )
        self.end()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mount.mkdir(exist_ok=True)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            argv: list[str | Path] = [program, *_OPTIONS, "-o", _FUSE]
            argv += ["-p", self.directory / "pid", self.mount]
            self._child = run.start(argv, stdout_fd=log, stderr_fd=log)
        finally:
            os.close(log)
        made = Daemon(self._child.pid, process.start_time(self._child.pid))
        write_atomic(self._record, f"{made.pid} {made.started}\n", 0o600)
        try:
            self._await_mount(self._child)
        except BaseException:
            self.end()
            raise
        return made

    def _await_mount(self, child: run.Process) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self._entry() is None:
            code = child.poll()
            if code is not None:
                raise StorageError(
                    f"lxcfs ended with status {code} instead of serving",
                    hint=f"{self._log} has the reason.",
                )
            if time.monotonic() > deadline:
                raise Timeout(f"lxcfs was not mounted within {START_TIMEOUT:.0f} seconds")
            time.sleep(0.005)

    def end(self) -> None:
        """Kill the daemon and unmount; whoever waits for its answer gets an error.  Idempotent."""
        with contextlib.suppress(OSError, ValueError):
            pid, started = map(int, self._record.read_text().split())
            with Pidfd(pid, started) as daemon:
                daemon.signal(signal.SIGKILL)
                daemon.wait(END_TIMEOUT)
        if self._child is not None:
            self._child.poll()
        while self._entry() is not None:
            # By force: the connection is aborted even if a process keeps the device open.
            self._unmount()
        self._record.unlink(missing_ok=True)

    def _unmount(self) -> None:
        try:
            flags = syscall.MNT_FORCE | syscall.MNT_DETACH | syscall.UMOUNT_NOFOLLOW
            syscall.umount2(os.fspath(self.mount), flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def device(self) -> tuple[int, int] | None:
        """Return the device number of what is mounted."""
        entry = self._entry()
        return None if entry is None else entry.device

    def _entry(self) -> MountEntry | None:
        found = [entry for entry in mounts(self.mount) if entry.target == os.fspath(self.mount)]
        return found[-1] if found else None

    def answers(self, timeout: float) -> bool:
        """Whether it answers a read within TIMEOUT seconds, by looks (patience.py)."""
        answered = threading.Event()

        def read() -> None:
            with contextlib.suppress(OSError):
                fd = os.open(self.mount / "proc/uptime", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if os.read(fd, 64):
                        answered.set()
                finally:
                    os.close(fd)

        # The thread is left behind when it hangs; it ends when the daemon is killed.
        reader = threading.Thread(target=read, name="lxcfs-probe", daemon=True)
        reader.start()
        for step in looks(timeout):
            reader.join(step)
            if not reader.is_alive():
                break
        return answered.is_set()
