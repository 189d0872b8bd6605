"""Reading and writing the small files of a cgroup file system, and taking its directories away.

`vzlist` reads these for hundreds of containers, hence os.open and os.read: no buffers, no Path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable

from pyvz.errors import BadValue, Busy
from pyvz.units import UNLIMITED

_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
# cgroup v1 writes "no limit" as LONG_MAX rounded down to a page: mm/page_counter.c
_V1_UNLIMITED = 1 << 62
REMOVE_TIMEOUT = 30.0


def check_name(name: str) -> str:
    """Return NAME when it can be one directory of ours; raise BadValue."""
    if not name or name.startswith(".") or "/" in name or "\n" in name or len(name) > 255:
        raise BadValue(f"'{name}' cannot be the name of a cgroup")
    return name


def read(path: str) -> str | None:
    """Return a file's text without the last newline; None when the kernel has no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    try:
        data = os.read(fd, 65536)
        # A seq_file answers with less than asked when its page is full: read on to the end.
        while len(data) >= 2048 and (more := os.read(fd, 65536)):
            data += more
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    finally:
        os.close(fd)
    return data.decode().rstrip("\n")


def read_int(path: str) -> int | None:
    """Return a file's number; "max" and the like are UNLIMITED; None when it is not there."""
    text = read(path)
    if text is None:
        return None
    if text in ("max", "-1"):
        return UNLIMITED
    number = int(text)
    return UNLIMITED if number >= _V1_UNLIMITED else number


def read_keyed(path: str) -> dict[str, int]:
    """Return the numbers of a file of "key number" lines; empty when it is not there."""
    pairs = (line.partition(" ") for line in (read(path) or "").splitlines())
    return {key: int(value) for key, _, value in pairs if value.isdigit()}


def write(path: str, text: str) -> None:
    """Write a file in one write(2), as cgroup files want it.  Raises OSError with the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def write_if_there(path: str, text: str) -> bool:
    """Write a file that older kernels may lack; return whether it was there."""
    try:
        write(path, text)
    except FileNotFoundError:
        return False
    return True


def children(path: str) -> list[str]:
    """Return the names of the cgroups directly below PATH; empty when it is not there."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def pids_below(path: str) -> list[int]:
    """Return the processes in PATH and everything below it (zombies of other pids left out)."""
    found: list[int] = []
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        # A threaded cgroup answers EOPNOTSUPP; its domain lists the processes.
        text = read(f"{directory}/cgroup.procs") or ""
        # 0 stands for a process of a pid namespace that is not below ours.
        found += [int(line) for line in text.split() if line != "0"]
        waiting += [f"{directory}/{name}" for name in children(directory)]
    return sorted(set(found))


def remove(paths: Iterable[str], *, timeout: float = REMOVE_TIMEOUT) -> None:
    """Remove cgroups with everything below them.  Idempotent.

    A cgroup stays busy for a moment after its last process has ended, so EBUSY is tried again
    until `timeout` seconds are over; then Busy names the processes.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    for path in paths:
        while True:
            try:
                _remove_tree(path, None)
                break
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                if time.monotonic() >= deadline:
                    raise busy(path) from error
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


def busy(path: str) -> Busy:
    """Return the error that names the processes in a cgroup."""
    pids = pids_below(path)
    return Busy(
        f"the cgroup {path} is in use",
        details="processes: " + " ".join(map(str, pids)) if pids else "",
    )


def _remove_tree(name: str, dir_fd: int | None) -> None:
    # By descriptors, since the inside may have made names longer together than PATH_MAX.  Its
    # depth is bounded by cgroup.max.depth (Tree.create).
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        with os.scandir(fd) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        for child in below:
            _remove_tree(child, fd)
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)
