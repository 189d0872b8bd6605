"""QEMU loaded ahead (linux/loaded.py): what a launcher does to itself before it executes QEMU, done
inside a QEMU that stands at its entry.

It has the descriptors 0, 1, 2 and one end of a socket pair, 3, through which it gets the others.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pyvz.linux import syscall
from pyvz.linux.loaded import Call, Loaded, Scratch

_SOCKET: Final = 3
_FIRST: Final = 4  # of the descriptors that come through it
# unistd_64.h: linux/loaded.py is for x86_64 only, too
_WRITE, _CLOSE, _RECVMSG, _OPENAT, _DUP3 = 1, 3, 47, 257, 292
_SETGROUPS, _SETRESUID, _SETRESGID, _PRCTL, _PRLIMIT = 116, 117, 119, 157, 302


class Ahead:
    """A QEMU that is loaded and waits; made by `load`."""

    def __init__(self, loaded: Loaded, sock: socket.socket) -> None:
        self._loaded = loaded
        self._sock = sock

    @property
    def pid(self) -> int:
        """Its process."""
        return self._loaded.pid

    def go(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Have it become what REQUEST says, with these descriptors; raises OSError."""
        with self._sock:
            socket.send_fds(self._sock, [b"\n"], descriptors)
        scratch = self._loaded.scratch(request["argv"])
        calls = becoming(request, len(descriptors), scratch)
        calls.append(self._loaded.showing(request["argv"], scratch))
        self._loaded.perform(calls, scratch)
        self._loaded.go(request["argv"])

    def dismiss(self) -> None:
        """End it; it is not wanted."""
        self._loaded.kill()
        self._sock.close()


def load(program: str, env: Mapping[str, str], prepare: Callable[[], None]) -> Ahead | None:
    """Load PROGRAM ahead; None where that cannot be done (no such program, no ptrace, ...).

    prepare: called in the new process: what is the same for every machine.
    """
    path = shutil.which(program, path=env["PATH"])
    if path is None:
        return None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            loaded = Loaded.start(path, program, env, lambda: _alone(theirs.fileno(), prepare))
        except (OSError, ValueError):
            ours.close()
            return None
    return Ahead(loaded, ours)


def _alone(descriptor: int, prepare: Callable[[], None]) -> None:
    """Make the new process one of its own: session, descriptors."""
    os.setsid()
    syscall.set_parent_death_signal(signal.SIGKILL)
    os.dup2(descriptor, _SOCKET)
    os.set_inheritable(_SOCKET, True)  # noqa: FBT003
    os.closerange(_FIRST, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    prepare()


def becoming(request: Mapping[str, Any], count: int, scratch: Scratch) -> list[Call]:
    """Return the calls that make it what REQUEST says, with COUNT descriptors to come.

    SCRATCH is filled with what they point to.
    """
    zero = scratch.put(b"0")
    groups = struct.pack(f"<{len(request['groups'])}I", *request["groups"])
    uid = request["uid"]
    calls = [*_received(count, scratch)]
    for path in request["procs"]:
        words = (
            syscall.AT_FDCWD,
            scratch.put(os.fsencode(path) + b"\0"),
            os.O_WRONLY | os.O_CLOEXEC,
        )
        calls.append(Call(path, _OPENAT, words))
        calls.append(Call(path, _WRITE, (_SOCKET, zero, 1)))  # the lowest number that is free
        calls.append(Call(path, _CLOSE, (_SOCKET,)))
    calls += _numbered(request["keep"])
    if request["memlock"]:
        limit = scratch.put(struct.pack("<2q", request["memlock"], request["memlock"]))
        calls.append(Call("prlimit", _PRLIMIT, (0, resource.RLIMIT_MEMLOCK, limit)))
    calls += [
        Call("setgroups", _SETGROUPS, (len(request["groups"]), scratch.put(groups))),
        Call("setresgid", _SETRESGID, (uid, uid, uid)),
        Call("setresuid", _SETRESUID, (uid, uid, uid)),
        Call("prctl", _PRCTL, (syscall.PR_SET_NO_NEW_PRIVS, 1)),
        # As after an execve(2); changing the user has turned it off.
        Call("prctl", _PRCTL, (syscall.PR_SET_DUMPABLE, 1)),
        Call("prctl", _PRCTL, (syscall.PR_SET_PDEATHSIG, 0)),
    ]
    return calls


def _received(count: int, scratch: Scratch) -> list[Call]:
    """Take COUNT descriptors from the socket: they get the numbers from _FIRST on."""
    text = scratch.put(bytes(8))
    vector = scratch.put(struct.pack("<2Q", text, 8))
    size = socket.CMSG_SPACE(4 * count)
    control = scratch.put(bytes(size))
    message = scratch.put(struct.pack("<QIxxxxQQQQIxxxx", 0, 0, vector, 1, control, size, 0))
    return [
        Call("recvmsg", _RECVMSG, (_SOCKET, message, socket.MSG_CMSG_CLOEXEC)),
        Call("close", _CLOSE, (_SOCKET,)),
    ]


def _numbered(wanted: Sequence[int]) -> list[Call]:
    """Give the descriptors from _FIRST on the numbers WANTED, by way of numbers above them all."""
    above = max(*wanted, _FIRST + len(wanted)) + 1
    calls = []
    for place in range(len(wanted)):
        calls.append(Call("dup3", _DUP3, (_FIRST + place, above + place, os.O_CLOEXEC)))
        calls.append(Call("close", _CLOSE, (_FIRST + place,)))
    for place, number in enumerate(wanted):
        calls.append(Call("dup3", _DUP3, (above + place, number, 0)))
        calls.append(Call("close", _CLOSE, (above + place,)))
    return calls
