"""inotify(7): to be told of changes below watched directories, without looking again and again.

What is read from an instance covers every change that was made before: the kernel queues an event
while the change is made, not later (kernfs, of which cgroups are, queues it in a worker).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.linux.syscall_inotify import inotify_add_watch, inotify_init, inotify_rm_watch

# linux/inotify.h
MODIFY: Final = 0x2
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000  # the watch is gone: removed, or what it watched is

ENTRIES: Final = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF

_HEAD: Final = struct.Struct("iIII")
_BUFFER: Final = 1 << 16


class Change(NamedTuple):
    """One event.  watch: the number that `add` returned, -1 when events were lost (OVERFLOW).

    name: of the entry in a watched directory, "" for what is watched itself.
    """

    watch: int
    mask: int
    name: str


class Inotify:
    """One instance; `fd` is readable when there are changes."""

    def __init__(self) -> None:
        self.fd: Final[int] = inotify_init()

    def add(self, path: str | Path, mask: int) -> int:
        """Watch PATH; the same number for what is watched already.  Raises OSError."""
        return inotify_add_watch(self.fd, path, mask)

    def remove(self, watch: int) -> None:
        """Watch it no more; gone already is fine."""
        with suppress(OSError):
            inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Change]:
        """Yield the changes that are there; waits for none."""
        while True:
            try:
                data = os.read(self.fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                watch, mask, _, length = _HEAD.unpack_from(data, at)
                at += _HEAD.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                yield Change(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Give it up with all its watches."""
        os.close(self.fd)
