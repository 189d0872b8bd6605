"""A way into a container's network for vzd, which never enters a namespace itself.

The keeper hands out the namespace (to move links into) and a route netlink socket that was made
inside: a socket belongs to the namespace it was made in, for good (network_namespaces(7)), so
what is said through it happens in the container, whoever says it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from pyvz.linux import syscall

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def open_network(pid: int) -> list[int]:
    """Return [network namespace of PID, route netlink socket in it]; OSError."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [namespace, _route_socket(namespace)]
    except BaseException:
        os.close(namespace)
        raise


def _route_socket(namespace: int) -> int:
    """Make the socket: only for a process with a single thread, which visits the namespace.

    Nothing is looked up or run in there, and nothing of the container can be seen or reached by
    it: a network namespace holds no paths.
    """
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscall.setns(namespace, syscall.CLONE_NEWNET)
        try:
            # DGRAM, as asyncio (in pyroute2) wants it; netlink makes no difference (netlink(7)).
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
        finally:
            syscall.setns(own, syscall.CLONE_NEWNET)  # cannot fail: we hold it, and are root
        return made.detach()
    finally:
        os.close(own)


def loopback_up() -> None:
    """Bring the interface lo of the network namespace that we are in up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
