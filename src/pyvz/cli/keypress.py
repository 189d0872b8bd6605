"""Waiting with an eye on the keyboard: programs that go on until a key is pressed."""

from __future__ import annotations

import os
import select
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Keys:
    """While open: a key is seen at once and not shown.  Ctrl-C works as ever.

    Where stdin is no terminal, nobody presses keys and waiting is just waiting.
    """

    def __init__(self) -> None:
        self._mode: list[Any] | None = None

    def __enter__(self) -> Keys:
        """Take lines no longer, but keys."""
        # In the background, changing the terminal would stop us (SIGTTOU).
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            self._mode = termios.tcgetattr(0)
            mode = termios.tcgetattr(0)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(0, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the mode."""
        if self._mode is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._mode)

    def wait(self, seconds: float) -> str:
        """Wait so long, or until a key is pressed, which is returned ("" for none)."""
        if self._mode is None:
            time.sleep(seconds)
            return ""
        if not select.select([0], [], [], seconds)[0]:
            return ""
        return os.read(0, 16).decode("utf-8", "replace") or "q"  # end of input ends us
