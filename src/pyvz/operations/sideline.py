"""Work in a thread beside other work, which waits for it in the end, or calls it off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from pyvz.errors import Cancelled, Timeout
from pyvz.model.task import Progress

_TICK = 0.2  # seconds between two calls of `poll`
_END_TIMEOUT = 60.0  # for one that was called off

T = TypeVar("T")


class Sideline(Generic[T]):
    """One piece of work; it gets us as its Progress, whose `check` raises when it is called off,
    or what it is beside.
    """

    def __init__(self, name: str, work: Callable[[Sideline[T]], T], progress: Progress) -> None:
        self._work = work
        self._progress = progress
        self._called_off = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def result(self, poll: Callable[[], None], timeout: float) -> T:
        """Wait for the end; raises what the work raised, what `poll` raises, Timeout."""
        for _ in range(int(timeout / _TICK)):
            self._thread.join(_TICK)
            if not self._thread.is_alive():
                break
            poll()
        else:
            raise Timeout(f"{self._thread.name} was not done in time")
        if self._error is not None:
            raise self._error
        return self._result[0]

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def call_off(self) -> None:
        """End it, and wait for that; one that never began is fine.  Idempotent."""
        self._called_off.set()
        with suppress(RuntimeError):  # never begun
            self._thread.join(_END_TIMEOUT)

    def _run(self) -> None:
        try:
            self._result.append(self._work(self))
        except BaseException as error:  # noqa: BLE001  raised again by result()
            self._error = error

    # A Progress

    def stage(self, text: str) -> None:
        """Say nothing: the main line tells its own."""
        del text
        self.check()

    def advance(self, done: int, total: int | None = None, *, unit: str = "B") -> None:
        """Say nothing."""
        del done, total, unit
        self.check()

    def check(self) -> None:
        """Raise Cancelled when it was called off."""
        if self._called_off.is_set():
            raise Cancelled("It was called off")
        self._progress.check()
