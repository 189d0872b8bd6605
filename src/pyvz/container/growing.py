"""The memory of a container while CRIU still writes it into files, on a file system in memory.

As fifos.py, but CRIU never waits for anybody: on a busy machine every waiting costs a turn of the
scheduler.  The files pages-<n>.img are written from front to back; what was read of them is given
back to the system at once, so that memory is needed twice only as far as reading is behind.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyvz.linux import syscall

_TICK = 0.005  # seconds between two looks


class Growing:
    """Reads the files in a thread of its own; put: see fifos.Fifos.

    keep: they stay, empty, since the next round of pre-copy opens those of its parent.
    """

    def __init__(
        self,
        images: Path,
        put: Callable[[str, int, memoryview], None],
        *,
        piece: int,
        keep: bool = False,
    ) -> None:
        self._images = images
        self._put = put
        self._piece = piece
        self._keep = keep
        self._fds: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._closing = threading.Event()
        self._closed = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dump-reader", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def drain(self) -> dict[str, int]:
        """Read what CRIU has written to the end; returns the sizes of the files, which are gone
        then (with `keep` empty).

        Raises what has failed.
        """
        self._closing.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure
        for name in self._sizes:
            if self._keep:
                os.truncate(self._images / name, 0)
            else:
                (self._images / name).unlink(missing_ok=True)
        return dict(self._sizes)

    def close(self) -> None:
        """Stop; idempotent."""
        self._closed.set()
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                last = self._closing.is_set()  # asked before: what came until now is still read
                self._discover()
                busy = [self._read(name, fd) for name, fd in list(self._fds.items())]
                if last and not any(busy):
                    break
                if not any(busy):
                    self._closing.wait(_TICK)
        except BaseException as error:  # noqa: BLE001  # raised again by drain()
            self.failure = error

    def _discover(self) -> None:
        """Open what is there now: CRIU numbers its files without a gap."""
        while True:
            name = f"pages-{len(self._fds) + 1}.img"
            try:
                self._fds[name] = os.open(self._images / name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            self._sizes[name] = 0

    def _read(self, name: str, fd: int) -> bool:
        """Hand on what is new in a file; False when that was nothing."""
        at = self._sizes[name]
        data = os.pread(fd, self._piece, at)
        if not data:
            return False
        self._put(name, at, memoryview(data))
        self._sizes[name] = at + len(data)
        with suppress(OSError):
            syscall.punch_hole(fd, at, len(data))
        return True
