"""Watches for pressure (Documentation/accounting/psi.rst) of processes that were restored.

A watch is what a program has written into an open *.pressure file; CRIU opens the file again and
knows nothing of the watch.  A file without one is ready for ever with POLLERR: systemd since 254,
which watches memory.pressure in every service that wants it, would spin.
"""

from __future__ import annotations

import os
from base64 import b64decode
from contextlib import suppress
from typing import Final

from pyvz.linux import cgroupfs, syscall

# What systemd asks for unless it is told otherwise (sd-event, MEMORY_PRESSURE_DEFAULT_*).
_USUAL: Final = b"some 200000 2000000"
_VARIABLE: Final = b"MEMORY_PRESSURE_WRITE="  # what systemd tells a service to write, in base64
_LONGEST: Final = 256
_LISTED: Final = 1 << 20  # bytes of an environment that are looked at


def watch_again(top: str) -> int:
    """Give every open *.pressure file of the processes in a cgroup2 and below a watch.

    Returns how many had none.  Processes and files that are gone by then are passed over.
    """
    count = 0
    device = os.stat(top).st_dev
    for pid in cgroupfs.pids_below(top):
        count += _of_process(pid, device)
    return count


def _of_process(pid: int, device: int) -> int:
    count = 0
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    count += _watch(pid, pidfd, number, device)
        finally:
            os.close(pidfd)
    return count


def _watch(pid: int, pidfd: int, number: str, device: int) -> bool:
    if not os.readlink(f"/proc/{pid}/fd/{number}").endswith(".pressure"):
        return False
    fd = syscall.pidfd_getfd(pidfd, int(number))
    try:
        # A guest can name its own files so; a write to those of cgroup2 never waits.
        if os.fstat(fd).st_dev != device:
            return False
        os.write(fd, _wanted(pid) + b"\0")  # EBADF: open for reading; EBUSY: it has one
    finally:
        os.close(fd)
    return True


def _wanted(pid: int) -> bytes:
    """Return what the process was told to write, or what is usual."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/environ", "rb") as file:
        for each in file.read(_LISTED).split(b"\0"):
            if each.startswith(_VARIABLE):
                told = b64decode(each.removeprefix(_VARIABLE), validate=True).rstrip(b"\0")
                if told.startswith((b"some ", b"full ")) and len(told) <= _LONGEST:
                    return told
    return _USUAL
