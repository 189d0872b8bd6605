"""The memory of a container while CRIU still writes it.

Most of a dump are the files pages-<n>.img, which CRIU writes from front to back.  Before it begins,
FIFOs stand in their places, and what comes out of them is handed on piece by piece: memory never
waits on a disk.  A failure closes them: CRIU gets EPIPE, the dump fails, the container goes on.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SHARED, MOST = 16, 256  # memory that processes share has files of its own
_CHUNK = 1 << 20
_F_SETPIPE_SZ = 1031


def count_for(processes: int) -> int:
    """How many files are taken in while they are written: one for each process, and some.

    CRIU writes the others as it always does.
    """
    return min(processes + SHARED, MOST)


def let_go(images: Path) -> None:
    """Let a CRIU go on that waits for a reader which is dead: what it writes fails.  Repeatable."""
    for path in images.glob("pages-*.img"):
        with suppress(FileNotFoundError):
            if stat.S_ISFIFO(os.lstat(path).st_mode):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


class Fifos:
    """Reads the FIFOs of one dump in a thread of its own.

    put: gets (name, offset, data), pieces of at most `piece` bytes, each file's in order.
    """

    def __init__(
        self, images: Path, count: int, put: Callable[[str, int, memoryview], None], *, piece: int
    ) -> None:
        self._images = images
        self._names = [f"pages-{number}.img" for number in range(1, count + 1)]
        self._put = put
        self._piece = piece
        self._fds: dict[int, str] = {}
        self._used: set[str] = set()
        self._held: dict[str, tuple[memoryview, int]] = {}  # a piece, and how much of it is there
        self._sizes: dict[str, int] = {}
        self._closing = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dump-reader", daemon=True)

    def start(self) -> None:
        """Make the FIFOs and begin to read."""
        for name in self._names:
            path = self._images / name
            os.mkfifo(path, 0o600)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fds[fd] = name
        if self._fds:
            self._thread.start()

    def drain(self) -> dict[str, int]:
        """Read to the end of what CRIU has written; returns the sizes of the files that it wrote.

        The FIFOs are gone then.  Raises what has failed.
        """
        self._end()
        if self.failure is not None:
            raise self.failure
        self.close()
        return {name: self._sizes.get(name, 0) for name in self._used}

    def close(self) -> None:
        """Stop, and take the FIFOs away; idempotent."""
        self._end()
        self._shut()
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        for name in self._names:
            (self._images / name).unlink(missing_ok=True)

    def _end(self) -> None:
        """Let the thread end when it has read everything."""
        self._closing.set()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()

    def _shut(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = {}

    def _run(self) -> None:
        poller = select.poll()
        for fd in (self._wake, *self._fds):
            poller.register(fd, select.POLLIN)
        try:
            while True:
                last = self._closing.is_set()  # asked before: what came until now is still read
                found = [fd for fd, _ in poller.poll(0 if last else None) if fd != self._wake]
                busy = [self._take(fd, poller) for fd in found]
                if last and not any(busy):
                    break
            for name in list(self._held):
                self._flush(name)
        except BaseException as error:  # noqa: BLE001  # raised again by drain()
            self.failure = error
            self._shut()  # CRIU must not wait for us

    def _take(self, fd: int, poller: select.poll) -> bool:
        """Read what a FIFO has; False when that was nothing."""
        name = self._fds[fd]
        if name not in self._used:
            self._used.add(name)
            with suppress(OSError):  # more than fs.pipe-max-size
                fcntl.fcntl(fd, _F_SETPIPE_SZ, _CHUNK)
        piece, there = self._held.get(name) or (memoryview(bytearray(self._piece)), 0)
        try:
            got = os.readv(fd, [piece[there:]])
        except BlockingIOError:
            return False
        if not got:
            poller.unregister(fd)  # written and closed
            return False
        self._held[name] = (piece, there + got)
        if there + got == self._piece:
            self._flush(name)
        return True

    def _flush(self, name: str) -> None:
        piece, there = self._held.pop(name)
        offset = self._sizes.get(name, 0)
        self._put(name, offset, piece[:there])
        self._sizes[name] = offset + there
