"""Disks that the kernel cannot show by itself: a storage daemon's file, and a loop device on it.

    image -- storage daemon --> <directory>/disk (FUSE) -- loop device --> block device

The loop device clears itself when the last mount on it goes; then, and never before, the daemon is
ended (`finish`).  Direct I/O is used where it was tried out first (storage/daemontest.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pyvz.image import gpt
from pyvz.image.file import opened
from pyvz.linux import loopdevice, mount
from pyvz.linux.loopdevice import LOOP_MAJOR, Loop
from pyvz.storage import daemontest
from pyvz.storage.daemon import Daemon, Node

DETACH_TIMEOUT: Final = 30.0


@contextlib.contextmanager
def shown(
    daemon: Daemon, nodes: Sequence[Node], place: Path, *, readonly: bool = False
) -> Iterator[Loop]:
    """Start the daemon and show its disk as a block device for the block.

    Afterwards the device is gone and the daemon has ended, unless something was mounted on it in
    the block; what an earlier one left is ended first.  place: the pool, where direct I/O is tried.
    Raises Unsupported, StorageError, Busy.
    """
    direct = daemontest.direct_io(place)
    daemon.stop()
    daemon.start(nodes, readonly=readonly)
    try:
        start, size = part(daemon.device)
        with loopdevice.attached(
            daemon.device, start, size, readonly=readonly, direct=direct
        ) as loop:
            yield loop
            held = mounted(daemon)
    except BaseException:
        # Its error is what matters.
        with contextlib.suppress(Exception):
            finish(daemon)
        raise
    if not held:
        finish(daemon)


def part(device: Path) -> tuple[int, int]:
    """Return (offset, size) of the file system: in a partition (disks of OpenVZ), or everywhere."""
    with opened(device) as fd:
        size = os.fstat(fd).st_size
        found = gpt.find(fd, 0, size)
    return (0, size) if found is None else (found.offset, found.size)


def loops(daemon: Daemon) -> list[Loop]:
    """Return the devices that show the daemon's disk, also when it is dead: found by name."""
    found = []
    for device in loopdevice.below(Path(os.path.realpath(daemon.directory))):
        number = int(device.name.removeprefix("loop"))
        found.append(Loop(device, LOOP_MAJOR, number, direct_io=False))
    return found


def mounted(daemon: Daemon) -> list[mount.MountEntry]:
    """Return where in this mount namespace the disk is mounted."""
    numbers = {(loop.major, loop.minor) for loop in loops(daemon)}
    return [entry for entry in mount.mounts() if entry.device in numbers] if numbers else []


def finish(daemon: Daemon, timeout: float = DETACH_TIMEOUT) -> None:
    """Wait until no device shows the disk, then end the daemon; raises Busy: who holds it."""
    for loop in loops(daemon):
        backing = loopdevice.backing_of(loop.minor)
        if backing is not None:
            loopdevice.wait_gone(loop.minor, backing, timeout)
    daemon.stop()
