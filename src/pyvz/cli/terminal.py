"""Our own terminal: raw mode that is always undone, and its size."""

from __future__ import annotations

import fcntl
import os
import termios

from pyvz.cli.signals import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class Ended(Exception):
    """A signal asked us to leave; the terminal is restored on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def is_terminal() -> bool:
    """Whether a person sits at stdin and sees stdout."""
    return os.isatty(0) and os.isatty(1)


def size(fd: int = 0) -> tuple[int, int]:
    """Return rows and columns; 24 by 80 where the terminal does not tell."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 24, 80
    return rows or 24, columns or 80


def set_size(fd: int, rows: int, columns: int) -> None:
    """Give a pty master the size; the kernel then sends SIGWINCH inside.  See tty_ioctl(4)."""
    packed = b"".join(n.to_bytes(2, "little") for n in (rows, columns, 0, 0))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, packed)


class Raw:
    """While open: the terminal at fd 0 passes every key; ending signals raise Ended.

    What was typed ahead is kept, for the program inside at the beginning and for the shell after.

    The old mode comes back in every case that leaves Python a chance: errors, SIGTERM, SIGHUP.
    Where fd 0 is no terminal only the signals are handled.
    """

    def __init__(self) -> None:
        self._mode: list[Any] | None = None
        self._handlers: list[tuple[int, Any]] = []

    def __enter__(self) -> Raw:
        """Enter raw mode."""
        for number in _ENDING:
            self._handlers.append((number, signal.signal(number, _end)))
        if os.isatty(0):
            self._mode = termios.tcgetattr(0)
            termios.tcsetattr(0, termios.TCSADRAIN, _raw(self._mode))
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the mode and the handlers."""
        for number in _ENDING:  # a second signal may not interrupt the restoring
            signal.signal(number, signal.SIG_IGN)
        if self._mode is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._mode)
        for caught, handler in self._handlers:
            signal.signal(caught, handler)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise Ended(number)


def _raw(mode: list[Any]) -> list[Any]:
    """Return MODE made raw, as cfmakeraw(3) does it."""
    raw: list[Any] = [item[:] if isinstance(item, list) else item for item in mode]
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] &= ~termios.OPOST
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    return raw


class FollowSize:
    """While open: a change of our terminal's size is passed on to a pty master."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._before: Any = None

    def __enter__(self) -> FollowSize:
        """Set the size now and at each SIGWINCH."""
        self._before = signal.signal(signal.SIGWINCH, self._changed)
        self._changed(0, None)
        return self

    def __exit__(self, *_: object) -> None:
        """Follow no longer."""
        signal.signal(signal.SIGWINCH, self._before)

    def _changed(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        try:
            set_size(self._master, *size())
        except OSError:
            return  # the session has just ended; its end is seen elsewhere
