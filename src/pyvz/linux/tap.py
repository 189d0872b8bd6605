"""Taps: links whose other end is a file descriptor, for the network cards of virtual machines.

A tap that is not persistent goes when its last descriptor is closed, so with its QEMU; rtnetlink
cannot make one (tun_validate, drivers/net/tun.c), the device node can.
"""

from __future__ import annotations

import fcntl
import os
import struct

from pyvz.errors import NetworkError, Unsupported

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TAP, _NO_INFO, _OFFLOAD_HEADER = 0x0002, 0x1000, 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_REQUEST = struct.Struct("16sH22x")  # struct ifreq


def open_tap(name: str) -> int:
    """Make a tap, or get hold of a persistent one; the descriptor is for QEMU (``tap,fd=``).

    Raises NetworkError (another process has it, or the link is of another kind), Unsupported.
    """
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Unsupported(
            f"Network cards of virtual machines need {_DEVICE}: {error.strerror}",
            hint="Load the module tun.",
        ) from error
    try:
        flags = _TAP | _NO_INFO | _OFFLOAD_HEADER
        fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(os.fsencode(name), flags))
    except OSError as error:
        os.close(fd)
        raise NetworkError(f"Cannot make the interface {name}: {error.strerror}") from error
    return fd
