"""Large files past the page cache (O_DIRECT), where the file system has it.

What is written once and read in another hour has no business there, where it drives out what others
use; and a disk that is asked for several pieces at a time is as fast so as with the cache, at half
the processor's time.  The kernel wants places, lengths and memory in whole blocks: that is done
here.  Where there is no O_DIRECT (some tmpfs, FUSE) all goes through the cache.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import queue
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from pyvz.linux import syscall

BLOCK: Final = 4096  # bytes; no disk has larger ones
_HELD: Final = 1 << 20  # bytes of small pieces that are written at once


class Buffers:
    """Memory of whole pages, `size` bytes each, to be used again: new pages cost.  Thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()

    def take(self) -> memoryview:
        """Return one, with anything in it."""
        with suppress(queue.Empty):
            return self._free.get_nowait()
        return memoryview(mmap.mmap(-1, self.size))

    def give(self, buffer: memoryview) -> None:
        """Let another one use it: the whole of what `take` has returned."""
        self._free.put(buffer)


class Sink:
    """A new file that is written front to back; a context manager.

    direct: past the page cache, if that can be, and the disk begins at once; else as any file.
    """

    def __init__(self, path: Path, *, direct: bool) -> None:
        self._direct, self._wanted = direct, direct
        self._at = 0  # where the next block is written
        self._held = memoryview(mmap.mmap(-1, _HELD))
        self._filled = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o600)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self._direct = False
            self._fd = os.open(path, flags, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def append(self, data: bytes | memoryview, *, paged: bool = False) -> int:
        """Write, and return where; paged: it begins at a page of memory (Buffers)."""
        if paged and len(data) >= _HELD and len(data) % BLOCK == 0:
            self.flush()
            at, self._at = self._at, self._at + len(data)
            self._write(memoryview(data), at)
            return at
        at = self._at + self._filled
        view = memoryview(data)
        while view:
            part = view[: _HELD - self._filled]
            self._held[self._filled : self._filled + len(part)] = part
            self._filled, view = self._filled + len(part), view[len(part) :]
            if self._filled == _HELD:
                self.flush()
        return at

    def flush(self) -> None:
        """Write what is held of small pieces, as whole blocks where that must be."""
        if not self._filled:
            return
        whole = -(-self._filled // BLOCK) * BLOCK if self._direct else self._filled
        self._held[self._filled : whole] = bytes(whole - self._filled)
        self._write(self._held[:whole], self._at)
        self._at += whole
        self._filled = 0

    def sync(self) -> None:
        """Return when all of it is on the disk."""
        self.flush()
        os.fdatasync(self._fd)

    def _write(self, view: memoryview, at: int) -> None:
        begin, length = at, len(view)
        while view:
            try:
                count = os.pwrite(self._fd, view, at)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._give_up_direct()
                continue
            view, at = view[count:], at + count
        if self._wanted and not self._direct:
            with suppress(OSError):  # or the disk would idle until all is there
                syscall.start_writeback(self._fd, begin, length)

    def _give_up_direct(self) -> None:
        """The file system took O_DIRECT and does not do it (or not for the rest of a block)."""
        self._direct = False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)


class Source:
    """A file that is read in pieces, large ones past the page cache; a context manager.

    Thread-safe.  Raises OSError when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._cached = os.open(path, flags)
        self._direct: int | None = None
        with suppress(OSError):
            self._direct = os.open(path, flags | os.O_DIRECT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    def read(self, at: int, length: int, buffer: memoryview) -> memoryview:
        """Return `length` bytes from `at` on, fewer at the end of the file, as a part of `buffer`.

        buffer: of Buffers, with two blocks more than that.
        """
        before = at % BLOCK
        whole = -(-(before + length) // BLOCK) * BLOCK
        count = 0
        if length >= _HELD and self._direct is not None:
            with suppress(OSError):
                count = os.preadv(self._direct, [buffer[:whole]], at - before)
        got = max(0, min(count - before, length))
        while got < length:
            more = os.preadv(self._cached, [buffer[before + got : before + length]], at + got)
            if not more:
                break
            got += more
        return buffer[before : before + got]
