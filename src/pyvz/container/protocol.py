"""The keeper's wire: messages over SOCK_SEQPACKET Unix sockets.

One packet is one JSON object; file descriptors travel with it (SCM_RIGHTS).  An object of more
than 32 KiB does not fit a packet under every net.core.wmem_max, so it travels in a sealed memfd:
the packet is then {"memfd": <size>} and the memfd is its first descriptor.  4 MiB is the limit.

    vzd (KeeperClient)                keeper                          stage (child, pid 1 inside)
      {"id": 7, "op": "start", ...} ->
                                      open the root's and binds' trees
                                      clone3 (all namespaces) ------> wait, at most 30 s
                                      uid_map, gid_map
                                      idmap the trees
                                      {"go": true} + fds of trees --> join cgroups, become root
                                                                      pivot_root, the operations
                                      keeps the master    <---------- {"console": true} + master
                                                                      signals, limits, capabilities
                                                          <---------- {"ready": true}
                                                                      seccomp, execve(init)
                                      exec has closed the socket <--- EOF
      <- {"id": 7, "ok": {pid, started}} + a copy of the master
                                      or: {"error": {step, errno, text}}, then EOF
      <- {"id": 7, "error": {step, errno, text}}

      {"op": "prepare", ...} ->       as start, up to the id maps; the child waits
      <- ok {pid, started} + [network namespace, route netlink socket made in it]
                                      vzd moves links in and gives them addresses
      {"op": "proceed", uuid} ->      the rest of start, and its answer ("abandon": end it)
      {"op": "network", uuid} ->      the same two descriptors of a running container

      {"id": 8, "op": "exec", ...} -> fork: `session.py` answers as the stage does, its ready
                                      carries {"session": ...} + pidfd of the program
      <- {"id": 8, "ok": {session, pid}} + [stdin, stdout, stderr] or [terminal]

      <- {"event": "exit", uuid, pid, started, status}     to every client, repeated at each
      {"op": "ack", uuid, pid, started} ->                 connect until one acknowledges it
      <- {"event": "session", session, status}             to the client that opened it

An answer carries the id of its request; requests of one client may be answered in any order.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

PACKET_LIMIT = 32 * 1024
MESSAGE_LIMIT = 4 * 1024 * 1024
FD_LIMIT = 128  # the kernel's SCM_MAX_FD is 253
SETUP_TIMEOUT = 30.0  # seconds for stage or session between clone and exec

_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL SHRINK GROW WRITE
_F_ADD_SEALS = 1033
_FD_SIZE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(FD_LIMIT * _FD_SIZE)


class ProtocolError(Exception):
    """The other side sent something that is not a message; the connection is of no more use."""


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message and its descriptors; OSError as from sendmsg(2)."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_LIMIT:
        raise ProtocolError(f"a message of {len(data)} bytes is too large")
    if len(data) <= PACKET_LIMIT:
        _send_packet(sock, data, fds)
        return
    memfd = os.memfd_create("pyvz-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_sealed(memfd, data)
        _send_packet(sock, b'{"memfd":%d}' % len(data), [memfd, *fds])
    finally:
        os.close(memfd)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one message and its descriptors (close-on-exec); None at the end of the stream.

    BlockingIOError when the socket does not block and nothing is there; ProtocolError for
    garbage.  No descriptor leaks on any error.
    """
    data, fds, flags = _receive_packet(sock)
    if not data and not fds:
        return None
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise ProtocolError("a packet was too long")
    try:
        message = _parse(data)
        if "memfd" in message:
            message, fds = _from_memfd(message, fds)
    except BaseException:
        close_all(fds)
        raise
    return message, fds


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; those that are closed already do not matter."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _send_packet(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    if len(fds) > FD_LIMIT:
        raise ProtocolError(f"{len(fds)} descriptors are too many for one message")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def _receive_packet(sock: socket.socket) -> tuple[bytes, list[int], int]:
    data, ancillary, flags, _ = sock.recvmsg(PACKET_LIMIT + 1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _FD_SIZE])
    return data, fds.tolist(), flags


def _parse(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("a packet is not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


def _write_sealed(memfd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(memfd, view) :]

    fcntl.fcntl(memfd, _F_ADD_SEALS, _SEALS)


def _from_memfd(message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    size = message["memfd"]
    if not isinstance(size, int) or not 0 < size <= MESSAGE_LIMIT or not fds:
        raise ProtocolError("a long message without its memfd")
    data = os.pread(fds[0], size, 0)
    if len(data) != size:
        raise ProtocolError("a long message is cut short")
    parsed = _parse(data)
    os.close(fds[0])
    return parsed, fds[1:]
