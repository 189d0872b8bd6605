"""Work that is called off, or whose process dies, at a chosen moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from pyvz.errors import Cancelled


class Dying:
    """A progress that does something at its n-th call."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.left = at
        self.act = act

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def stage(self, text: str) -> None:
        self._step()

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        self._step()

    def check(self) -> None:
        self._step()


def cancel() -> None:
    raise Cancelled("called off")


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a child; return how it ended (minus the signal)."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
