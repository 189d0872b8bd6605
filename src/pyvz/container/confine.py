"""What a child of the keeper does to itself before it executes a program of the container.

Shared by stage.py (init) and session.py (exec, enter).  Runs in a freshly forked, single-threaded
process that ends with execve or _exit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import resource
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from pyvz.container import protocol
from pyvz.linux import syscall

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441
_PTMX = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt


# What the interpreter and the keeper ignore.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Progress:
    """The step that a child is at, for the error that it may have to report."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.step = "starting"

    def fail(self, error: BaseException) -> NoReturn:
        """Tell the keeper and end."""
        code = error.errno if isinstance(error, OSError) and error.errno else 0
        text = f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
        report = {"error": {"step": self.step, "errno": code, "text": text}}
        with contextlib.suppress(OSError):
            protocol.send(self.sock, report)
        os._exit(127)


def run_child(progress: Progress, work: Callable[[], None]) -> NoReturn:
    """Run the child's work, which ends in execve; whatever goes wrong is reported."""
    try:
        forget_keeper()
        work()
    except BaseException as error:  # noqa: BLE001  # a fork must never return into the keeper's loop
        progress.fail(error)
    os._exit(127)


def forget_keeper() -> None:
    """Default signal actions, an empty mask, an ordinary place in the OOM killer's order.

    Only what is ignored outlives execve, and the keeper ignores nothing else (keeper.py).
    """
    gc.disable()  # a collection would copy every page that we share with the keeper
    signal.set_wakeup_fd(-1)
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError):  # the keeper has none either, then
        _write("/proc/self/oom_score_adj", "0")


def join_cgroups(fds: Iterable[int]) -> None:
    """Move ourselves into the cgroups whose open files (CgroupEntry) these are.

    The kernel checks the opener's rights, not the writer's (cgroup-v2.rst, delegation), so this
    works from inside a user namespace.
    """
    for fd in fds:
        os.write(fd, b"0")
        os.close(fd)


def become_root_inside() -> None:
    """Be uid 0 and gid 0 of the user namespace that we are in, without further groups."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def limit(capabilities: int, program: bytes | None, *, merge: bool = False) -> None:
    """Drop capabilities from the bounding set and load the seccomp filter.

    In this order, and before any change of the user: loading a filter without no_new_privs
    needs CAP_SYS_ADMIN.  merge: equal pages of the program and of all that it begets are merged;
    that is inherited by fork and kept by exec (mm/ksm.c).
    """
    if merge:
        syscall.set_memory_merge(on=True)
    for number in range(_last_capability() + 1):
        if not capabilities >> number & 1:
            syscall.drop_bounding(number)
    if program:
        syscall.seccomp_load(program)


def keep_capabilities(capabilities: int) -> None:
    """Have exactly these capabilities, inheritable none."""
    known = capabilities & ((1 << _last_capability() + 1) - 1)
    syscall.capset(known, known, 0)


def set_rlimits(limits: Iterable[Sequence[int]]) -> None:
    """Apply (resource, soft, hard); a hard limit is never raised, for want of CAP_SYS_RESOURCE."""
    for which, soft, hard in limits:
        _, mine = resource.getrlimit(which)
        top = hard if mine == resource.RLIM_INFINITY else min(hard, mine)
        resource.setrlimit(which, (min(soft, top), top))


def open_terminal() -> tuple[int, int, int]:
    """Make a terminal in the devpts of the root directory we are in: (master, slave, number).

    What stands at /dev/pts/ptmx may be a trap: it is not waited for, and must be the real device.
    The slave is opened through the master, not by name (TIOCGPTPEER).
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    master = os.open("/dev/pts/ptmx", flags | os.O_NONBLOCK)
    if os.fstat(master).st_rdev != _PTMX:
        raise OSError(errno.ENODEV, "/dev/pts/ptmx is not the terminal multiplexer")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, b"\0\0\0\0"))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, flags)
    return master, slave, number


def take_terminal(slave: int) -> None:
    """Make it our controlling terminal; we must lead a session."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def set_stdio(stdin: int, stdout: int, stderr: int) -> None:
    """Put three descriptors, none of them below 3, in the places 0 to 2."""
    for target, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, target)


def close_at_exec() -> None:
    """Every descriptor but 0 to 2 closes at exec: one of the node's left would be a leak out."""
    syscall.close_range(3, flags=syscall.CLOSE_RANGE_CLOEXEC)


def above_stdio(fd: int) -> int:
    """The same description at a number above 2, so that set_stdio cannot overwrite it."""
    if fd > 2:
        return fd
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _last_capability() -> int:
    """The highest number that the kernel knows: above it PR_CAPBSET_READ is an error."""
    low, high = 32, 63
    while low < high:
        middle = (low + high + 1) // 2
        try:
            syscall.bounding_has(middle)
            low = middle
        except OSError:
            high = middle - 1
    return low


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
