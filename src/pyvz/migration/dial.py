"""Connecting to another node's dispatcher by ssh, and one call after the other on the wire."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from pyvz.errors import (
    Cancelled,
    CommandFailed,
    ConnectionFailed,
    ProtocolError,
    VZError,
)
from pyvz.linux import run
from pyvz.migration import cipher, lastwords, messages, wire
from pyvz.migration.address import Address
from pyvz.migration.messages import Message
from pyvz.migration.wire import Wire
from pyvz.model.task import NoProgress, Progress
from pyvz.version import VERSION

HELLO_TIMEOUT = 60.0  # ssh's own time to connect, and vzd's to start over there
CALL_TIMEOUT = 600.0


class Peer:
    """The other node: its wire, who it is, and calls to it."""

    def __init__(self, link: Wire, address: Address, hello: Message) -> None:
        self.wire = link
        self.address = address
        self.host = str(hello["host"])
        self.node = str(hello["node"])
        self._channels = 0
        self._asked = 0  # questions whose answers have not come

    def call(
        self,
        kind: str,
        *,
        timeout: float = CALL_TIMEOUT,
        progress: Progress | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Ask the other node for something and return its result.

        Raises the error that it answers with, ConnectionBroken, Timeout, Cancelled.
        """
        self.ask(kind, **fields)
        return self.answer(timeout=timeout, progress=progress)

    def ask(self, kind: str, **fields: Any) -> None:  # noqa: ANN401
        """Ask the other node for something, and do not wait; raises ConnectionBroken."""
        self.wire.send(messages.make(kind, **fields))
        self._asked += 1

    def answer(
        self, *, timeout: float = CALL_TIMEOUT, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Wait for the answer to what was asked last.

        Answers come in the order of the questions: those to earlier ones, for which nobody has
        waited to the end (Timeout, Cancelled), are passed over.  Raises as `call`.
        """
        progress = progress or NoProgress()
        while True:
            message = self.wire.receive(timeout, poll=progress.check)
            if message["is"] == "progress":
                progress.stage(f"{self.host}: {message['stage']}")
                continue
            if message["is"] not in {"done", "failed"}:
                raise ProtocolError(f"{self.host} answered with '{message['is']}'")
            self._asked -= 1
            if self._asked > 0:
                continue
            if message["is"] == "failed":
                raise messages.error_of(message, self.host)
            result: dict[str, Any] = message["result"]
            return result

    def new_channel(self) -> wire.Channel:
        """Return a channel that was not used before."""
        self._channels += 1
        return self.wire.channel(self._channels)


@contextlib.contextmanager
def dial(
    address: Address,
    me: str,
    *,
    options: Sequence[str] = (),
    silence: float = wire.SILENCE,
    compress: bool = True,
    check: Callable[[], None] | None = None,
) -> Iterator[Peer]:
    """Connect to the node at ADDRESS for the block.  me: the id of this node.

    check: raises Cancelled when nobody waits for it any more.  Raises ConnectionFailed with ssh's
    own words.
    """
    ours, theirs = wire.pair()
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        errors = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        fds: run.SpawnOptions = {
            "stdin_fd": theirs.fileno(),
            "stdout_fd": theirs.fileno(),
            "stderr_fd": errors.fileno(),
        }
        try:
            stack.enter_context(run.spawn(cipher.command(address, options), **fds))
        except CommandFailed as error:
            raise ConnectionFailed("ssh cannot be started", details=error.message) from error
        finally:
            theirs.close()
        fd = ours.detach()
        link = Wire(
            fd, fd, silence=silence, compress=compress, last_words=lambda: lastwords.tail(errors)
        )
        stack.callback(link.close)
        yield Peer(link, address, greet(link, address, me, errors, check))


def hello(me: str) -> Message:
    """Return the message with which both sides begin."""
    return messages.make(
        "hello",
        version=messages.VERSION,
        program=VERSION,
        node=me,
        host=socket.gethostname(),
    )


def greet(
    link: Wire,
    address: Address,
    me: str,
    errors: IO[bytes],
    check: Callable[[], None] | None = None,
) -> Message:
    """Open the wire and exchange greetings; ssh may be gone again before the first byte.

    Raises ConnectionFailed, ProtocolError, and what CHECK raises.
    """
    try:
        link.open()
        link.send(hello(me))
        answer = link.receive(HELLO_TIMEOUT, poll=check)
    except (ProtocolError, Cancelled):
        raise
    except VZError as error:
        words = lastwords.awaited(errors)
        raise lastwords.not_connected(address, error.message, words) from error
    if answer["is"] == "failed":
        raise messages.error_of(answer, str(address))
    return expect_hello(answer)


def expect_hello(message: Message) -> Message:
    """Return MESSAGE when it is a greeting that we understand; raises ProtocolError."""
    if message["is"] != "hello":
        raise ProtocolError(f"The other node begins with '{message['is']}'")
    if message["version"] != messages.VERSION:
        raise ProtocolError(
            f"{message['host']} speaks version {message['version']} of the migration protocol, "
            f"this node version {messages.VERSION}",
            hint="Install the same version of pyvz on both nodes.",
        )
    return message
