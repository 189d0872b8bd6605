"""Programs inside an environment, seen from our terminal: exec, enter, console.

The node ends of the program's pipes, or of its pty, come over the API's socket; the data goes
through them directly.  vzd only tells the exit status in the end.
"""

from __future__ import annotations

import os
import sys
import time

from pyvz.cli import terminal
from pyvz.cli.client import connect
from pyvz.cli.relay import Relay
from pyvz.cli.signals import signal
from pyvz.errors import ExecError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

    from pyvz.cli.server import Server

_ESC_TIME = 1000  # ms after which a lone Esc is passed on
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

# bash where the environment has one, as the original runs it, else its sh.
_WITH_BASH = "command -v bash >/dev/null 2>&1 && exec bash {0}; exec sh {0}"
_HOME = 'cd "${HOME:-/root}" 2>/dev/null; '


def shell_command(words: Sequence[str]) -> list[str]:
    """Return the argv that runs the words, joined by spaces, through a shell."""
    return ["/bin/sh", "-c", _WITH_BASH.format('-c "$1"'), "sh", " ".join(words)]


def login_shell(*, interactive: bool) -> list[str]:
    """Return the argv of the shell that `enter` opens."""
    return ["/bin/sh", "-c", _HOME + _WITH_BASH.format("-l" if interactive else "-s")]


def script_shell() -> list[str]:
    """Return the argv of a shell that reads its commands from stdin (`vzctl exec CT -`)."""
    return ["/bin/sh", "-c", _WITH_BASH.format("-s")]


def execute(server: Server, uuid: str, argv: Sequence[str], *, offline: bool = False) -> int:
    """Run a program with our stdin, stdout, stderr; return its exit status.

    offline: a stopped environment is started minimally for it.
    """
    streams = _open(server, uuid, argv, {"offline": offline})
    relay = Relay(streams["stdin"], [(streams["stdout"], 1), (streams["stderr"], 2)])
    with _Forward(streams["id"]):
        try:
            return _until_exit(server, relay, terminal_session=False)
        finally:
            relay.close()


def enter(server: Server, uuid: str, argv: Sequence[str]) -> int:
    """Run a program at a terminal of its own that is shown at ours; return its exit status."""
    rows, columns = terminal.size()
    size = {"rows": rows, "cols": columns, "term": os.environ.get("TERM", "linux")}
    streams = _open(server, uuid, argv, {"terminal": size})
    master = int(streams["terminal"])
    relay = Relay(master, [(master, 1)])
    try:
        with terminal.Raw(), terminal.FollowSize(master):
            return _until_exit(server, relay, terminal_session=True)
    except terminal.Ended as ended:
        return ended.code
    finally:
        relay.close()


def _open(server: Server, uuid: str, argv: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
    """Start the program; return the descriptors by name, and the session's "id"."""
    parameters = {"ref": uuid, "argv": list(argv), "env": [], "offline": False}
    parameters["origin"] = server.origin
    server.connection.send("Environment.Exec", {**parameters, **more}, more=True)
    while True:
        reply = server.connection.receive()
        session = reply.parameters.get("session")
        if session:
            names = session["streams"]
            if len(names) != len(reply.fds):
                raise ExecError("vzd sent another number of streams than it told")
            return {"id": session["id"], **dict(zip(names, reply.fds, strict=True))}
        if not reply.continues:
            raise ExecError("vzd opened no session")


def _until_exit(server: Server, relay: Relay, *, terminal_session: bool) -> int:
    """Relay until vzd tells the exit status; return it."""
    connection = server.connection
    while True:
        readable = relay.pump(
            -1 if connection.buffered else connection.fileno(), 0 if connection.buffered else None
        )
        if not (readable or connection.buffered):
            continue
        result = connection.receive().parameters.get("result")
        if result is not None:
            relay.drain(terminal=terminal_session)
            return int(result["exit_status"]) & 0xFF


class _Forward:
    """While open: SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the program inside."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> _Forward:
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before.append((number, signal.signal(number, self._caught)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        del frame
        try:
            with connect(start=False) as connection:
                connection.call("Environment.SignalSession", session=self._session, signal=number)
        except VZError as error:
            sys.stderr.write(f"The signal was not delivered: {error.message}\n")


class DetachKeys:
    """Finds Enter Esc . in what is typed at a console; the original's way out."""

    def __init__(self) -> None:
        self._state = 1  # 0 nothing, 1 at the beginning of a line, 2 after the Esc there
        self._since = 0.0

    @property
    def held(self) -> bool:
        """Whether an Esc is held back."""
        return self._state == 2

    def __call__(self, data: bytes) -> bytes | None:
        """Return what is to be passed on, None when the user has asked to leave."""
        passed = bytearray()
        for byte in data:
            if self._state == 2:
                if byte == ord("."):
                    return None
                passed += b"\x1b"
            elif self._state == 1 and byte == 0x1B:
                self._state = 2
                self._since = time.monotonic()
                continue
            passed.append(byte)
            self._state = 1 if byte in b"\r\n" else 0
        return bytes(passed)

    def overdue(self) -> bytes:
        """Return the Esc that has been held back for a second: it was meant for the program."""
        if self._state != 2 or time.monotonic() - self._since < _ESC_TIME / 1000:
            return b""
        self._state = 0
        return b"\x1b"


def console(server: Server, uuid: str) -> int:
    """Attach to the console until the user leaves or it ends."""
    reply = server.connection.call_fds("Environment.Console", ref=uuid)
    if len(reply.fds) != 1:
        raise ExecError("vzd sent no console")
    keys = DetachKeys()
    relay = Relay(reply.fds[0], [(reply.fds[0], 1)], keys=keys if os.isatty(0) else None)
    try:
        with terminal.Raw():
            while relay.open and not relay.detached:
                relay.pump(timeout=_ESC_TIME if keys.held else None)
                relay.flush(keys.overdue())
    except terminal.Ended as ended:
        return ended.code
    finally:
        relay.close()
    return 0
