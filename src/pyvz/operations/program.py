"""A program inside a container, run to its end: bounded input, bounded output, a deadline."""

from __future__ import annotations

import os
import selectors
import signal
import time
from contextlib import suppress
from typing import NamedTuple

from pyvz.container.runtime import Session
from pyvz.errors import Timeout

MAX_OUTPUT = 64 << 10  # bytes kept of what the program says: the last ones
GRACE = 2.0  # seconds a program gets to end after its deadline
TICK = 0.1  # seconds between two looks whether it has ended


class Ended(NamedTuple):
    """How the program ended: its status as a shell shows it, and the end of both its outputs."""

    code: int
    output: str


def finish(session: Session, data: bytes = b"", *, timeout: float) -> Ended:
    """Feed `data` to the program, read what it says until it ends, and reap it.

    Takes over the session: its descriptors are closed in any case, and the program is killed when
    it has not ended within `timeout` seconds (raises Timeout) or when anything else goes wrong.
    """
    deadline = time.monotonic() + timeout
    streams = list(session.fds)
    try:
        output = _exchange(session, streams, data, deadline)
        code = session.wait(max(0.1, deadline - time.monotonic()))
    except BaseException:
        with suppress(Exception):
            session.signal(signal.SIGKILL)
            session.wait(GRACE)
        raise
    finally:
        for fd in streams:
            os.close(fd)
    return Ended(code, output.decode("utf-8", "replace"))


def _exchange(session: Session, streams: list[int], data: bytes, deadline: float) -> bytes:
    """Write `data` to the first stream and close it; read the others until the program ended.

    What it left running in the background may hold its output open: that is not waited for.
    """
    kept = bytearray()
    unsent = memoryview(data)
    stdin, *outputs = streams
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_WRITE if fd == stdin else selectors.EVENT_READ)
        while any(fd in selector.get_map() for fd in outputs):
            ended = session.exit.done()
            ready = [key.fd for key, _ in selector.select(TICK)]
            if ended and not any(fd in outputs for fd in ready):
                break
            if time.monotonic() >= deadline:
                raise Timeout("The program inside the container did not end in time")
            for fd in ready:
                if fd == stdin:
                    unsent = _send(stdin, unsent)
                if (fd == stdin and not unsent) or (fd != stdin and not _receive(fd, kept)):
                    selector.unregister(fd)
                    streams.remove(fd)
                    os.close(fd)
    return bytes(kept)


def _send(fd: int, unsent: memoryview) -> memoryview:
    """Write what goes in; a reader that is gone needs no more."""
    try:
        return unsent[os.write(fd, unsent[:65536]) :] if unsent else unsent
    except BlockingIOError:
        return unsent
    except BrokenPipeError:
        return unsent[:0]


def _receive(fd: int, kept: bytearray) -> bool:
    """Keep what comes, within limits; False at the end."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        return True
    kept += data
    del kept[:-MAX_OUTPUT]
    return bool(data)
