"""Who calls, and what that caller may do.

The kernel tells who opened the connection (unix(7): SO_PEERCRED, SO_PEERGROUPS), so nobody can
pretend.  Root may do all; members of the group `vz` may only look; everybody else is refused.
"""

from __future__ import annotations

import grp
import socket
import struct
from enum import Enum
from typing import NamedTuple

SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h, Linux 4.13
GROUP = "vz"

# What `Access.READ` may call, beside the introspection of org.varlink.service.
READABLE = frozenset(
    {
        "io.pyvz.Memory.List",
        "io.pyvz.Memory.Policy",
        "io.pyvz.Memory.Stats",
        "io.pyvz.Memory.Free",
        "io.pyvz.Memory.Config",
        "io.pyvz.Memory.PolicyCounts",
        "io.pyvz.Environment.List",
        "io.pyvz.Environment.Info",
        "io.pyvz.Environment.Status",
        "io.pyvz.Environment.Statistics",
        "io.pyvz.Network.List",
        "io.pyvz.Network.ListPrivate",
        "io.pyvz.Node.Info",
        "io.pyvz.Node.Events",
        "io.pyvz.Node.Tasks",
        "io.pyvz.Node.Ping",
        "io.pyvz.Backup.List",
        "io.pyvz.Storage.SnapshotList",
        "io.pyvz.Storage.Unused",
        "io.pyvz.Template.List",
        "io.pyvz.Template.ListContainer",
        "io.pyvz.Template.Info",
        "io.pyvz.Traffic.List",
        "io.pyvz.Traffic.Settings",
        "org.varlink.service.GetInfo",
        "org.varlink.service.GetInterfaceDescription",
    }
)


class Access(Enum):
    """How much a caller may do."""

    NONE = 0
    READ = 1
    FULL = 2


class Caller(NamedTuple):
    """The process at the other end of a connection, as it was when it connected."""

    pid: int
    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, sock: socket.socket) -> Caller:
        """Ask the kernel who is at the other end of SOCK."""
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", credentials)
        return cls(pid, uid, frozenset({gid, *_peer_groups(sock)}))


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4096)
    except OSError:  # more groups than fit, or a kernel without it: the primary group counts
        return ()
    return struct.unpack(f"{len(data) // 4}I", data[: len(data) // 4 * 4])


def reader_group() -> int | None:
    """Return the id of the group `vz`, or None where there is no such group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def access_of(caller: Caller, reader_gid: int | None) -> Access:
    """Return what CALLER may do; READER_GID is the group that may look."""
    if caller.uid == 0:
        return Access.FULL
    if reader_gid is not None and reader_gid in caller.gids:
        return Access.READ
    return Access.NONE


def allowed(access: Access, method: str) -> bool:
    """Whether somebody with ACCESS may call METHOD (a full name)."""
    return access is Access.FULL or (access is Access.READ and method in READABLE)
