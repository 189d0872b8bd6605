"""The far end of another node's ssh connection: vzd itself reads and writes what sshd has given to
vzmdest, so that no byte of a migration or backup passes through one more process.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from socket import socketpair
from typing import Final

from asyncvarlink import FileDescriptor

_PIPE: Final = 1 << 20  # bytes: the default of fs.pipe-max-size


def answer(
    name: str,
    serve: Callable[[int, int], None],
    reading: FileDescriptor,
    writing: FileDescriptor,
) -> FileDescriptor:
    """Have the other node answered in a thread of its own.

    serve: gets descriptors to read and to write, which become its own.  Returns a socket that ends
    when it has returned.
    """
    ours, theirs = socketpair()
    pair = _own(reading), _own(writing)

    def run() -> None:
        with ours:
            serve(*pair)

    threading.Thread(target=run, name=name, daemon=True).start()
    return FileDescriptor(theirs.detach(), should_close=True)


def _own(given: FileDescriptor) -> int:
    fd = os.dup(given.fileno())
    with suppress(OSError):  # no pipe, or no room for a larger one
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
    return fd
