"""Becomes QEMU: joins the machine's control groups, becomes its own user, executes it.

    python -S -m pyvz.vm.launch SOCKET [PROGRAM]

It waits at SOCKET, ready, for the one message that says what to do: descriptors, of which the first
holds JSON: argv, keep (the numbers that the other descriptors shall have; 1 and 2 are the log),
procs (files of cgroups to join, see CgroupEntry), uid, groups, memlock (bytes; 0: as it is; -1:
no limit), ahead.  Without a message it ends with whoever made it.  A program of its own, so that
everything that QEMU does is counted and confined from its first instruction, and because a process
with threads may not do this after a fork.

Told a PROGRAM, it loads that ahead (ahead.py) and sends the number of its process: whoever has
received it may ask for that one ("ahead") in place of this process itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import socket
import sys
from typing import Any

from pyvz.linux import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.vm.ahead import Ahead

MAX_DESCRIPTORS = 250  # in one message: SCM_MAX_FD of the kernel is 253
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108
    # A QEMU takes more than this at its start: asked for at once it can be touched ahead.  One of
    # the three turns off that malloc(3) finds the others itself, so they are what it comes to.
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}


def main(argv: list[str]) -> None:
    """Do it; a failure is told on standard error, which is the machine's log."""
    sock = socket.socket(fileno=int(argv[0]))
    sock.set_inheritable(False)  # its end tells that we have become another program
    loaded = _loaded(sock, argv[1:])
    _, received, _, _ = socket.recv_fds(sock, 1, MAX_DESCRIPTORS)
    if not received:
        return  # what is loaded ends with us
    with os.fdopen(received[0], "rb") as file:
        request = json.load(file)
    if loaded is not None and request["ahead"]:
        os.dup2(received[1], sys.stderr.fileno())  # the log
        loaded.go(request, received[1:])
        return
    if loaded is not None:
        loaded.dismiss()
    _become(request, received[1:])


def _loaded(sock: socket.socket, programs: list[str]) -> Ahead | None:
    """Load a program ahead and tell its process, unless we are needed at once."""
    if not programs or select.select([sock], [], [], 0)[0]:
        return None
    from pyvz.vm import ahead  # noqa: PLC0415  for who has the time

    loaded = ahead.load(programs[0], ENVIRONMENT, _prepare)
    if loaded is not None:
        sock.send(str(loaded.pid).encode())
    return loaded


def _prepare() -> None:
    """What is the same for every machine."""
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    _prepare()
    _number(descriptors, request["keep"])
    for path in request["procs"]:
        _join(path)
    if request["memlock"]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (request["memlock"], request["memlock"]))
    os.setgroups(request["groups"])
    os.setresgid(request["uid"], request["uid"], request["uid"])
    os.setresuid(request["uid"], request["uid"], request["uid"])
    syscall.set_no_new_privs()
    words = request["argv"]
    os.execvpe(words[0], words, ENVIRONMENT)  # noqa: S606  a list, from us


def _join(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def _number(received: list[int], wanted: list[int]) -> None:
    """Give the descriptors the numbers by which the command line calls them."""
    # First all out of the way of each other.
    above = max((*wanted, *received)) + 1
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in received]
    for each in received:
        os.close(each)
    for number, each in zip(wanted, moved, strict=True):
        os.dup2(each, number, inheritable=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.stderr.write(f"pyvz: {error.strerror or error}: {error.filename or ''}\n")
        sys.exit(125)
