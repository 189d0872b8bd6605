"""The server as a command line sees it: one connection, who asks, how long to wait, Ctrl-C.

While a long call runs, Ctrl-C (or SIGTERM, SIGHUP) asks vzd over a second connection to cancel our
task, and then waits for the answer of the first: by then the server has undone its work.  A second
Ctrl-C does not wait any more; vzd cancels the task anyway when the connection is gone.
"""

from __future__ import annotations

import os
import sys

from pyvz.cli.client import connect
from pyvz.cli.signals import signal
from pyvz.errors import Cancelled, InDoubt, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from pyvz.cli.client import Connection

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server:
    """vzd, reached when the first call is made.

    origin: the program's name, for vzd's log.
    timeout: seconds to wait for the environment's lease, None for vzd's default (fail at once).
    """

    def __init__(self, origin: str, *, timeout: int | None = None, quiet: bool = False) -> None:
        self.origin = origin
        self.timeout = timeout
        self.quiet = quiet
        self._connection: Connection | None = None

    def __enter__(self) -> Server:
        """Return the server; the connection is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    @property
    def connection(self) -> Connection:
        """The connection, made at the first use.  Raises DaemonUnreachable."""
        if self._connection is None:
            self._connection = connect()
        return self._connection

    def ask(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call a method that changes nothing and return its reply."""
        return self.connection.call(method, **parameters)

    def change(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call a short method that changes something and return its reply."""
        with _CancelOnSignal() as cancel:
            try:
                return self.connection.call(method, **self._signed(parameters))
            except VZError as error:
                raise cancel.reworded(error) from error

    def run(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Run a long method with its progress on the terminal, return its result.

        Raises Cancelled after Ctrl-C, when the server has undone what it had done.
        """
        from pyvz.cli.progress import Bar  # noqa: PLC0415  only for long calls

        with Bar(quiet=self.quiet) as bar, _CancelOnSignal() as cancel:
            try:
                return self.connection.stream(
                    method, on_progress=bar.show, **self._signed(parameters)
                )
            except VZError as error:
                raise cancel.reworded(error) from error

    def run_telling(
        self, method: str, tell: Callable[[dict[str, Any]], None], /, **parameters: Any
    ) -> dict[str, Any]:
        """Run a long method, hand {"progress": ...} to TELL as it comes, return its result.

        rate and left (seconds) are added to what the server says.
        """
        from pyvz.cli.rate import Rate  # noqa: PLC0415  only for --json

        rate = Rate()
        with _CancelOnSignal() as cancel:
            try:
                return self.connection.stream(
                    method,
                    on_progress=lambda progress: tell({"progress": rate.told(progress)}),
                    **self._signed(parameters),
                )
            except VZError as error:
                raise cancel.reworded(error) from error

    def _signed(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {**parameters, "origin": self.origin, "timeout": self.timeout}


class _CancelOnSignal:
    """While open: SIGINT, SIGTERM and SIGHUP cancel our tasks on the server."""

    def __init__(self) -> None:
        self._asked = False
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> _CancelOnSignal:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                self._before.append((number, signal.signal(number, self._caught)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def reworded(self, error: VZError) -> VZError:
        """Return ERROR, as Cancelled when the user asked for it (and it is not in doubt)."""
        if self._asked and not isinstance(error, (Cancelled, InDoubt)):
            return Cancelled("Cancelled", details=error.message)
        return error

    def _caught(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        sys.stderr.write("Cancelling...\n")
        try:
            cancel_own_tasks()
        except VZError as error:
            sys.stderr.write(f"{error.message}; press Ctrl-C again to stop waiting for it\n")


def cancel_own_tasks() -> None:
    """Ask vzd to cancel every task that this process has started."""
    own = os.getpid()
    with connect(start=False) as connection:
        for entry in connection.call("Node.Tasks").get("tasks", []):
            if entry.get("pid") == own:
                connection.call("Node.CancelTask", id=entry["id"])
