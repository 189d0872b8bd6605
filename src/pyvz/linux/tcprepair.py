"""TCP sockets that a killed CRIU has left in repair mode: they would stay silent for ever.

CRIU puts every connection that it saves into that mode (tcp(7) does not tell; net/ipv4/tcp.c,
TCP_REPAIR) and takes it out again itself, unless it is killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from pyvz.linux import syscall

_TCP_REPAIR = 19
_OFF = 0  # with a window probe, so that the peer hears of us


def mend(pids: Iterable[int]) -> int:
    """Take every TCP socket of these processes out of repair mode; returns how many were in it.

    Processes and sockets that are gone by then are passed over.
    """
    mended = 0
    for pid in pids:
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                for number in os.listdir(f"/proc/{pid}/fd"):
                    with suppress(OSError):
                        mended += _mend(pid, pidfd, number)
            finally:
                os.close(pidfd)
    return mended


def _mend(pid: int, pidfd: int, number: str) -> int:
    if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
        return 0
    with socket.socket(fileno=syscall.pidfd_getfd(pidfd, int(number))) as found:
        if found.type != socket.SOCK_STREAM or found.family not in (
            socket.AF_INET,
            socket.AF_INET6,
        ):
            return 0
        if not found.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
            return 0
        found.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
        return 1
