"""Files of a kernel file system that are read again and again: kept open, which saves most of it.

Opening costs more than reading them.  Each `sweep` closes what was not read since the last one,
and a file whose group is gone closes itself; beyond the limit files are opened and closed as usual.
"""

from __future__ import annotations

import os
import resource
import threading
from contextlib import suppress

from pyvz.linux import cgroupfs

_OTHERS = 512  # descriptors left to the rest of the process
_SIZE = 8192  # of what is read; the files kept here are smaller


class KeptFiles:
    """Open files by path.  Thread-safe."""

    def __init__(self, most: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = max((limit - _OTHERS) // 2, 0) if most is None else most
        self._guard = threading.Lock()
        self._open: dict[str, int] = {}
        self._read: set[str] = set()

    def read(self, path: str) -> str | None:
        """Return the text of a file; None when it is not there (any more)."""
        with self._guard:
            fd = self._open.get(path)
            if fd is not None:
                self._read.add(path)
                try:
                    return os.pread(fd, _SIZE, 0).decode()
                except OSError:  # ENODEV: the group was removed; perhaps made anew
                    self._close(path)
            if len(self._open) < self._most:
                return self._keep(path)
        return cgroupfs.read(path)

    def _keep(self, path: str) -> str | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        self._open[path] = fd
        self._read.add(path)
        try:
            return os.pread(fd, _SIZE, 0).decode()
        except OSError:
            self._close(path)
            return None

    def sweep(self) -> None:
        """Close what was not read since the last time."""
        with self._guard:
            for path in self._open.keys() - self._read:
                self._close(path)
            self._read.clear()

    def close(self) -> None:
        """Close everything."""
        with self._guard:
            for path in list(self._open):
                self._close(path)

    def _close(self, path: str) -> None:
        self._read.discard(path)
        with suppress(OSError):
            os.close(self._open.pop(path))
