"""Processes named safely: pid and start time together, and pidfds.

A pid alone may be given to another process at any time; (boot id, pid, start time) never is.
"""

from __future__ import annotations

import os
import select
import signal
from types import TracebackType

from pyvz.linux import syscall


def boot_id() -> str:
    """The random id of this boot of the kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """Start time in clock ticks since boot; ProcessLookupError when there is no such process."""
    return int(_stat_fields(pid)[19])


def parent_pid(pid: int) -> int:
    """The parent's pid; ProcessLookupError when there is no such process."""
    return int(_stat_fields(pid)[1])


def state(pid: int) -> str:
    """One letter as in ps: R S D T Z ...; ProcessLookupError when there is no such process."""
    return _stat_fields(pid)[0]


def cpu_seconds(pid: int) -> float:
    """CPU time used so far, user and system; ProcessLookupError when there is no such process."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def zombie_status(pid: int, started: int) -> int | None:
    """The wait status of a zombie, whoever its parent is; None when it was reaped already.

    proc_pid_stat(5), field 52: for a whole thread group it is what wait(2) would tell, so the init
    of a pid namespace shows the signal of reboot(2); PIDFD_GET_INFO has the thread's own status,
    which is 0 for an init that called reboot(2) itself.
    """
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return None
    return int(fields[49]) if int(fields[19]) == started and fields[0] == "Z" else None


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold blanks and brackets."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(3, f"no process {pid}") from None
    return text[text.rindex(")") + 2 :].split()


def alive(pid: int, started: int) -> bool:
    """Whether that very process still exists and is not a zombie."""
    try:
        fields = _stat_fields(pid)
    except ProcessLookupError:
        return False
    return int(fields[19]) == started and fields[0] not in "ZX"


class Pidfd:
    """A handle of one process that can never mean another one; a context manager.

    ``Pidfd(pid, started)`` raises ProcessLookupError when that process is gone or its pid is
    another's now.  ``Pidfd.adopt(fd)`` takes over a descriptor that one got otherwise.
    """

    def __init__(self, pid: int, started: int | None = None) -> None:
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        try:
            # Read after the open: from here on the descriptor and the pid mean the same process.
            self.started = start_time(pid)
        except BaseException:
            self.close()
            raise
        if started is not None and self.started != started:
            self.close()
            raise ProcessLookupError(3, f"process {pid} is another one now")

    @classmethod
    def adopt(cls, fd: int, pid: int, started: int) -> Pidfd:
        """Own an existing pidfd."""
        made = cls.__new__(cls)
        made.fd, made.pid, made.started = fd, pid, started
        return made

    def __enter__(self) -> Pidfd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when the process has ended."""
        return self.fd

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone already."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout: float) -> bool:
        """Wait until the process has ended, at most timeout seconds; True when it has."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(max(0, round(timeout * 1000))))

    def exit_status(self) -> int | None:
        """The wait status of an ended process, also when it was not our child (Linux 6.15).

        None while it lives, while nobody has reaped it yet, or when the kernel cannot tell.
        """
        try:
            return syscall.pidfd_info(self.fd).exit_status
        except OSError:
            return None
