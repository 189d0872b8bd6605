"""Whether a QEMU has an image open: it holds record locks on bytes of the file, and whoever opens
the file anew can ask for them.

Source: block/file-posix.c of QEMU (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE), fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_BASE: Final = 100  # of the bytes that tell what it does; those that tell what it allows follow
_LENGTH: Final = 200
_FLOCK: Final = struct.Struct("hhqqi4x")


def held(image: Path) -> bool:
    """Whether some QEMU has the image open; False for one that is not there."""
    try:
        descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BASE, _LENGTH, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)
