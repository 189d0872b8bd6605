"""Becomes QEMU: joins the machine's control groups, becomes its own user, executes it.

    python -S -m pyvz.vm.launch SOCKET

It waits at SOCKET, ready, for the one message that says what to do: descriptors, of which the first
holds JSON: argv, keep (the numbers that the other descriptors shall have; 1 and 2 are the log),
procs (files of cgroups to join, see CgroupEntry), uid, groups, memlock, env.  Without a message it
ends with whoever made it.  A program of its own, so that everything that QEMU does is counted and
confined from its first instruction, and because a process with threads may not do this after a
fork.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import sys

from pyvz.linux import syscall

MAX_DESCRIPTORS = 250  # in one message: SCM_MAX_FD of the kernel is 253


def main(argv: list[str]) -> None:
    """Do it; a failure is told on standard error, which is the machine's log."""
    sock = socket.socket(fileno=int(argv[0]))
    sock.set_inheritable(False)  # its end tells that we have become another program
    _, received, _, _ = socket.recv_fds(sock, 1, MAX_DESCRIPTORS)
    if not received:
        return
    with os.fdopen(received[0], "rb") as file:
        request = json.load(file)
    _number(received[1:], request["keep"])
    for path in request["procs"]:
        _join(path)
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["memlock"]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (request["memlock"], request["memlock"]))
    os.setgroups(request["groups"])
    os.setresgid(request["uid"], request["uid"], request["uid"])
    os.setresuid(request["uid"], request["uid"], request["uid"])
    syscall.set_no_new_privs()
    words = request["argv"]
    os.execvpe(words[0], words, request["env"])  # noqa: S606  a list, from us


def _join(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def _number(received: list[int], wanted: list[int]) -> None:
    """Give the descriptors the numbers by which the command line calls them."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
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
