"""The guest agent (qemu-ga): commands to the inside, over a socket of QEMU.

What it answers is the guest's, so hostile: lines have a limit, every wait has a deadline, and
values are read one by one.  Each use is a connection of its own, and begins with guest-sync, which
throws away what an earlier user did not read.  Protocol: docs/interop/qemu-ga.rst of QEMU.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvz.errors import AgentError, ExecError, NoAgent, Timeout

MAX_ANSWER = 64 << 20  # bytes: guest-exec keeps 16 MiB of each output, in base64
SYNC = 30.0  # seconds for an agent that is there to say so: a busy node stands still at times
ANSWER = 30.0
_TICK = (0.02, 0.05, 0.1, 0.2, 0.5)  # seconds between two questions whether a program has ended

Answer = Any


class Ended(NamedTuple):
    """How a program inside ended; truncated: it wrote more than the agent keeps."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool


class Agent:
    """One conversation with the agent; a context manager.  Raises NoAgent when none answers."""

    def __init__(self, connect: Callable[[], socket.socket], *, patience: float = SYNC) -> None:
        self._sock = connect()
        self._rest = b""
        try:
            self._sync(patience)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def call(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = ANSWER
    ) -> Answer:
        """Run a command and return its answer; raises AgentError, NoAgent, Timeout."""
        self._send(command, arguments)
        reply = self._receive(time.monotonic() + timeout, command)
        if "error" in reply:
            raise AgentError(_words(reply["error"]))
        return reply.get("return")

    def tell(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Send a command that has no answer when it succeeds (guest-shutdown)."""
        self._send(command, arguments)

    def start(self, argv: list[str], *, env: list[str] | None = None, data: bytes = b"") -> int:
        """Start a program and return its number; its outputs are kept by the agent."""
        arguments: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        if env:
            arguments["env"] = env
        if data:
            arguments["input-data"] = base64.b64encode(data).decode()
        try:
            return int(self.call("guest-exec", arguments)["pid"])
        except AgentError as error:
            raise ExecError(f"{argv[0]} could not be started", details=error.message) from error
        except (TypeError, KeyError, ValueError) as error:
            raise ExecError("The guest agent's answer makes no sense") from error

    def finished(self, number: int) -> Ended | None:
        """Return how a program ended, None while it runs."""
        answer = self.call("guest-exec-status", {"pid": number})
        try:
            if not answer["exited"]:
                return None
            status = answer.get("exitcode")
            signal = int(answer.get("signal", 0))
            return Ended(
                int(status) if status is not None else 128 + signal,
                base64.b64decode(answer.get("out-data", "")),
                base64.b64decode(answer.get("err-data", "")),
                bool(answer.get("out-truncated") or answer.get("err-truncated")),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ExecError("The guest agent's answer makes no sense") from error

    def run(self, argv: list[str], *, data: bytes = b"", timeout: float = 60.0) -> Ended:
        """Run a program to its end; raises Timeout (it runs on)."""
        deadline = time.monotonic() + timeout
        number = self.start(argv, data=data)
        for tick in pauses():
            ended = self.finished(number)
            if ended is not None:
                return ended
            if time.monotonic() > deadline:
                break
            time.sleep(tick)
        raise Timeout(f"{argv[0]} inside has not ended within {timeout:g} s")

    def _sync(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        number = secrets.randbelow(1 << 31)
        self._sock.settimeout(patience)
        # 0xFF makes the agent's parser forget a torn command of an earlier user.
        self._write(b"\xff")
        self._send("guest-sync-delimited", {"id": number})
        while True:
            try:
                reply = self._receive(deadline, "guest-sync-delimited")
            except Timeout:
                raise NoAgent(
                    "The guest agent does not answer",
                    hint="Install qemu-guest-agent inside, or wait until the guest has booted.",
                ) from None
            except NoAgent:
                raise
            if reply.get("return") == number:
                return

    def _send(self, command: str, arguments: dict[str, Any] | None) -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._write(json.dumps(message).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise NoAgent("The guest agent does not take the command") from error

    def _receive(self, deadline: float, command: str) -> dict[str, Any]:
        line = self._line(deadline, command)
        try:
            reply = json.loads(line.rpartition(b"\xff")[2])
        except ValueError:
            reply = {}  # what a torn conversation left behind
        return reply if isinstance(reply, dict) else {}

    def _line(self, deadline: float, command: str) -> bytes:
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Timeout(f"The guest agent did not answer {command} in time")
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError as error:
                raise NoAgent("The connection to the guest agent broke") from error
            if not data:
                raise NoAgent("The virtual machine has ended")
            size += len(data)
            if size > MAX_ANSWER:
                raise AgentError("The guest agent's answer is far too long")
            parts.append(data)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def pauses() -> Any:  # noqa: ANN401  an endless iterator of seconds
    """Yield how long to wait before the next question, growing."""
    yield from _TICK
    while True:
        yield _TICK[-1]


def _words(error: Any) -> str:  # noqa: ANN401
    text = error.get("desc", "") if isinstance(error, dict) else ""
    clean = "".join(char if char.isprintable() else " " for char in str(text))
    return clean[:500] or "the guest agent refused it"
