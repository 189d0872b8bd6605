"""Carries bytes between our stdin, stdout, stderr and the descriptors of a session.

Our own descriptors stay blocking, they belong to our parent too; those of the session are made
non-blocking.  Nothing is read while what was read before has not been passed on, so a slow reader
slows the writer and no memory grows.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHUNK = 65536
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_TERMINAL_QUIET = 50  # ms without output after which a terminal is taken as drained
_TERMINAL_ROUNDS = 20


class Relay:
    """One session's pumps.

    stdin: the session's descriptor that gets our fd 0, or -1.
    outputs: (session's descriptor, our descriptor) pairs.
    keys: sees what was read from fd 0 and returns what is to be passed on (console); None: end.
    """

    def __init__(
        self,
        stdin: int,
        outputs: Sequence[tuple[int, int]],
        *,
        keys: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        self._stdin = stdin
        self._outputs = dict(outputs)
        self._keys = keys
        self._pending = b""
        self._reading = stdin >= 0
        self._shared = stdin in self._outputs  # one descriptor both ways: terminal, socket
        self.detached = False
        for fd in {stdin, *self._outputs} - {-1}:
            os.set_blocking(fd, False)

    @property
    def open(self) -> bool:
        """Whether any output may still come."""
        return bool(self._outputs)

    def pump(self, other: int = -1, timeout: float | None = None) -> bool:
        """Move what can be moved; return whether the descriptor OTHER became readable.

        timeout: milliseconds to wait for something to do, None = as long as it takes.
        """
        poll = select.poll()
        for fd, events in self._interests().items():
            poll.register(fd, events)
        if other >= 0:
            poll.register(other, select.POLLIN)
        ready = dict(poll.poll(timeout))
        if self._reading and ready.get(0):
            self._read_keys()
        at_stdin = ready.get(self._stdin, 0) if self._stdin >= 0 else 0
        if self._pending and at_stdin & (select.POLLOUT | _GONE):
            self._write_stdin()
        elif at_stdin & _GONE and not self._shared:
            self._end_stdin()
        for fd in list(self._outputs):
            if ready.get(fd, 0) & (select.POLLIN | _GONE):
                self._forward(fd, CHUNK)
        return bool(ready.get(other))

    def _interests(self) -> dict[int, int]:
        wanted = dict.fromkeys(self._outputs, select.POLLIN)
        if self._pending:
            wanted[self._stdin] = wanted.get(self._stdin, 0) | select.POLLOUT
        elif self._reading:
            wanted[0] = select.POLLIN
            if not self._shared:
                wanted[self._stdin] = 0  # the program may close its stdin: POLLERR says so
        return wanted

    def _read_keys(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._end_stdin()
            return
        if self._keys is not None:
            kept = self._keys(data)
            if kept is None:
                self.detached = True
                return
            data = kept
        self._pending += data

    def _write_stdin(self) -> None:
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # the program does not read any more; what was typed is of no use
            self._pending = b""
            self._end_stdin()

    def flush(self, data: bytes) -> None:
        """Add DATA to what goes to the session."""
        self._pending += data

    def _end_stdin(self) -> None:
        """Our stdin has ended: so does the program's.  A shared descriptor stays for its output."""
        self._reading = False
        if not self._shared and self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    def _forward(self, fd: int, limit: int) -> int:
        """Pass on up to LIMIT bytes of an output; return how many; an ended one is closed."""
        try:
            data = os.read(fd, limit)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the other side of a pty is closed
            data = b""
        if not data:
            self._close(fd)
            return 0
        if not _write_all(self._outputs[fd], data):
            # Our reader is gone: the program shall learn it by SIGPIPE, as in a pipe.
            self._close(fd)
        return len(data)

    def _close(self, fd: int) -> None:
        del self._outputs[fd]
        if fd == self._stdin:
            self._reading = False
            self._stdin = -1
            self._pending = b""
        os.close(fd)

    def drain(self, *, terminal: bool) -> None:
        """Pass on what the ended program has left.

        A pipe holds all that was written before the exit, FIONREAD tells how much: what processes
        in the background write later is not waited for.  A pty may still be handing bytes over in
        the kernel: it is drained when nothing has come for 50 ms.
        """
        for fd in list(self._outputs):
            left = _available(fd)
            while left > 0 and fd in self._outputs:
                moved = self._forward(fd, min(left, CHUNK))
                left = left - moved if moved else 0
        if terminal:
            self._reading = False
            self._pending = b""
            for _ in range(_TERMINAL_ROUNDS):
                if not self._outputs or not self._wait_output():
                    return

    def _wait_output(self) -> bool:
        poll = select.poll()
        for fd in self._outputs:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(_TERMINAL_QUIET)
        for fd, _ in ready:
            self._forward(fd, CHUNK)
        return bool(ready)

    def close(self) -> None:
        """Close every descriptor of the session."""
        fds = set(self._outputs) | ({self._stdin} if self._stdin >= 0 else set())
        self._outputs.clear()
        self._stdin = -1
        for fd in fds:
            os.close(fd)


def _available(fd: int) -> int:
    """Return how many bytes can be read from FD now."""
    answer = fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0")
    return int.from_bytes(answer, "little")


def _write_all(fd: int, data: bytes) -> bool:
    """Write DATA to one of our own descriptors; False when nobody reads it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # our parent made it non-blocking
            select.select([], [fd], [])
        except OSError:
            return False
    return True
