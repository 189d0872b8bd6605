"""The system calls of inotify(7).  Each raises OSError."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


def inotify_init() -> int:
    """Return the descriptor of a new instance that never waits."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def inotify_add_watch(fd: int, path: str | os.PathLike[str], mask: int) -> int:
    """Watch PATH, or change what it is watched for; return the number of the watch."""
    result = _libc.inotify_add_watch(fd, os.fsencode(path), mask)
    return _checked(result, "inotify_add_watch", os.fspath(path))


def inotify_rm_watch(fd: int, watch: int) -> None:
    """Watch it no more."""
    _checked(_libc.inotify_rm_watch(fd, watch), "inotify_rm_watch")


def _checked(result: int, call: str, path: str | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", path)
    return result
