"""The console of one container: the terminal's master side, its scroll-back, who looks at it.

No slave descriptor is held, so nothing of the container stays pinned.  When nobody inside has the
slave open (systemd closes it between getty and getty, and hangs it up) a read of the master gives
EIO; watching edge-triggered makes that no busy loop, and the next writer inside wakes us again.

A viewer is a stream socket: it is sent the scroll-back, then what comes; what it cannot take at
once is dropped for it alone.  What a viewer writes goes to the terminal.  A container may write
as fast as it likes: we read BUDGET bytes in TICK seconds, then its writers wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios

from pyvz.container.loop import EDGE, GONE, READ, WRITE, Loop

SCROLLBACK = 64 * 1024
TICK = 0.05
BUDGET = 64 * 1024
_CHUNK = 16 * 1024
_LOG_LIMIT = 4 * 1024 * 1024
_VIEWERS = 64


class Ring:
    """The last `size` bytes of a stream."""

    __slots__ = ("_data", "_size")

    def __init__(self, size: int = SCROLLBACK) -> None:
        self._data = bytearray()
        self._size = size

    def append(self, data: bytes) -> None:
        """Add bytes, forgetting the oldest."""
        self._data += data
        if len(self._data) > 2 * self._size:  # seldom, so that appending stays cheap
            del self._data[: -self._size]

    def content(self) -> bytes:
        """What is remembered, oldest first."""
        return bytes(self._data[-self._size :])


class Log:
    """A file that the output is appended to; put aside as NAME.1 when it has grown large."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def write(self, data: bytes) -> None:
        """Append; a log that cannot be written is given up silently (the console goes on)."""
        with contextlib.suppress(OSError):
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            os.write(self._fd, data)
            if os.fstat(self._fd).st_size > _LOG_LIMIT:
                os.rename(self._path, self._path + ".1")  # noqa: PTH104  # pathlib is heavy here
                self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Console:
    """Owns a master descriptor and its viewers."""

    def __init__(self, loop: Loop, master: int, log: str | None = None) -> None:
        self._loop = loop
        self.master = master
        self.ring = Ring()
        self.log = log
        self._log = Log(log) if log else None
        self._viewers: dict[int, socket.socket] = {}
        self._waiting = b""  # input that the terminal did not take yet
        self._spent = 0
        self._resting = False
        os.set_blocking(master, False)
        loop.add(master, READ | WRITE | EDGE, self._master_ready)

    def attach(self) -> int:
        """Make a viewer; returns its end of the socket, to be given away and closed."""
        if len(self._viewers) >= _VIEWERS:
            raise OSError(24, "too many viewers of this console")
        ours, theirs = socket.socketpair()
        with contextlib.suppress(BlockingIOError):
            ours.setblocking(False)  # noqa: FBT003  # the name of the function
            ours.send(self.ring.content())
        self.adopt_viewer(ours)
        return theirs.detach()

    def adopt_viewer(self, viewer: socket.socket) -> None:
        """Take a viewer's socket over (handover from our former self)."""
        viewer.setblocking(False)  # noqa: FBT003
        self._viewers[viewer.fileno()] = viewer
        self._loop.add(viewer.fileno(), READ, lambda events: self._viewer_ready(viewer, events))

    def viewers(self) -> list[int]:
        """The descriptors of all viewers."""
        return list(self._viewers)

    def resize(self, rows: int, columns: int) -> None:
        """Set the window size; the container is told by SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Read what is left, then let viewers and terminal go."""
        self._resting = False
        self._spent = 0
        self._drain()
        for viewer in list(self._viewers.values()):
            self._drop(viewer)
        self._loop.remove(self.master)
        os.close(self.master)
        self.master = -1
        if self._log:
            self._log.close()

    def _master_ready(self, events: int) -> None:
        if events & WRITE:
            self._feed()
        if events & (READ | GONE):
            self._drain()

    def _drain(self) -> None:
        """Read until there is nothing, or until the budget of this tick is spent."""
        while not self._resting:
            try:
                data = os.read(self.master, _CHUNK)
            except OSError:  # EAGAIN: nothing now.  EIO: nobody has the slave open now.
                return
            if not data:
                return
            self._deliver(data)
            if self._spent == 0:
                self._loop.after(TICK, self._refill)
            self._spent += len(data)
            self._resting = self._spent >= BUDGET

    def _refill(self) -> None:
        self._spent = 0
        if self._resting and self.master >= 0:
            self._resting = False
            self._drain()

    def _deliver(self, data: bytes) -> None:
        self.ring.append(data)
        if self._log:
            self._log.write(data)
        for viewer in list(self._viewers.values()):
            try:
                viewer.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except OSError:
                self._drop(viewer)

    def _viewer_ready(self, viewer: socket.socket, events: int) -> None:
        if self._waiting:  # the terminal is full; this viewer is read again once it is not
            if events & GONE:
                self._drop(viewer)
            return
        try:
            data = viewer.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(viewer)
            return
        self._waiting = data
        self._feed()

    def _feed(self) -> None:
        """Write waiting input to the terminal; viewers are not read while some is left."""
        held = bool(self._waiting)
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self.master, self._waiting) :]
        except BlockingIOError:
            self._watch_viewers(reading=False)
            return
        except OSError:  # nobody has the slave open: typed into nothing
            self._waiting = b""
        if held:
            self._watch_viewers(reading=True)

    def _watch_viewers(self, *, reading: bool) -> None:
        for fd in self._viewers:
            self._loop.change(fd, READ if reading else 0)

    def _drop(self, viewer: socket.socket) -> None:
        self._loop.remove(viewer.fileno())
        self._viewers.pop(viewer.fileno(), None)
        viewer.close()
