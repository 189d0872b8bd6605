"""Processes that are about to become a QEMU (launch.py): one is ready, so that no start waits for
the interpreter, nor for QEMU to be loaded and linked (ahead.py).

A launcher knows nothing and may nothing until it is told; it ends with vzd.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyvz.errors import StartError
from pyvz.linux import loaded
from pyvz.linux import run as programs
from pyvz.vm.launch import MAX_DESCRIPTORS

BECOMING = 60.0  # seconds to become another program: 5 ms as a rule


class Launcher:
    """One such process.  program: is loaded ahead, where that can be done.

    pid: of the process that becomes another; `settle` may change it.
    """

    def __init__(self, program: str = "") -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = os.fspath(Path(__file__).parents[2])
        ahead = [program] if program else []
        with theirs:
            number = theirs.fileno()
            self.process = programs.start(
                [sys.executable, "-S", "-m", "pyvz.vm.launch", str(number), *ahead],
                env={"PYTHONPATH": package},
                pass_fds=(number,),
            )
        self._sock = ours
        self.pid = self.process.pid
        self.ahead = False

    def settle(self, argv: Sequence[str]) -> None:
        """Decide which process is to become ARGV: one that has it loaded, or the launcher's own."""
        with suppress(BlockingIOError, ConnectionError):
            text = self._sock.recv(32, socket.MSG_DONTWAIT)
            if text and loaded.fits(argv) and loaded.fresh(int(text)):
                self.pid, self.ahead = int(text), True

    def execute(self, request: dict[str, Any], descriptors: Sequence[int], log: int) -> None:
        """Have it become what REQUEST says, with these descriptors and LOG; raises StartError.

        `await_exec` is to follow.
        """
        words = request | {"keep": [1, 2, *descriptors], "ahead": self.ahead}
        memory = os.memfd_create("machine", os.MFD_CLOEXEC)
        try:
            os.write(memory, json.dumps(words).encode())
            os.lseek(memory, 0, os.SEEK_SET)
            given = [memory, log, log, *descriptors]
            if len(given) > MAX_DESCRIPTORS:
                raise StartError("The virtual machine has too many devices")
            socket.send_fds(self._sock, [b"\n"], given)
        except OSError as error:
            self._sock.close()
            raise StartError(f"QEMU could not be started: {error.strerror}") from error
        finally:
            os.close(memory)

    def await_exec(self, timeout: float = BECOMING) -> None:
        """Wait until it has become the other program, or has failed, which its log tells then."""
        with self._sock as sock, suppress(TimeoutError):
            sock.settimeout(timeout)
            while sock.recv(32):  # nothing at its end; before it, what `settle` did not wait for
                pass

    @property
    def alive(self) -> bool:
        """Whether it still waits."""
        return self.process.poll() is None

    def dismiss(self) -> None:
        """End it; it is not wanted any more."""
        self._sock.close()
        self.process.end()


class Launchers:
    """Keeps one launcher of PROGRAM ready.  Thread-safe."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._guard = threading.Lock()
        self._ready: Launcher | None = None
        self._closed = False

    def prepare(self) -> None:
        """Have one ready, unless there is."""
        with self._guard:
            if not self._closed and (self._ready is None or not self._ready.alive):
                self._ready = Launcher(self._program)

    def take(self) -> Launcher:
        """Return a launcher for the program, the caller's from now on."""
        with self._guard:
            found, self._ready = self._ready, None
        return found if found is not None and found.alive else Launcher()

    def close(self) -> None:
        """Dismiss the one that is ready; no other is made."""
        with self._guard:
            found, self._ready, self._closed = self._ready, None, True
        if found is not None:
            found.dismiss()
