"""How small a ploop disk can become, how much of it takes space, and space kept for all of it.

What `prl_disk_tool --info` and `convert --plain` tell and do.  Sizes are in bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import Unsupported
from pyvz.image import identity
from pyvz.image.disk import RAW
from pyvz.image.file import no_space, opened
from pyvz.image.header import CLUSTER
from pyvz.linux import filesystem
from pyvz.model.task import Progress
from pyvz.operations import imagedevice, imagemount
from pyvz.operations.image import Disk, held, load
from pyvz.operations.node import Node

_STEP: Final = 256 << 20  # bytes reserved between two looks whether it is called off


class Estimate(NamedTuple):
    """A disk.  minimum: what `resize` could make of it; resizable: its file system can shrink.

    allocated: bytes of its image that take space (also where they are shared).  used: bytes that
    its file system has in use.
    """

    size: int
    minimum: int
    resizable: bool
    blocksize: int
    allocated: int
    used: int


def estimate(node: Node, path: str) -> Estimate:
    """Return what is known; the disk may be mounted, the minimum is an estimate then."""
    used = imagemount.usage(node, path).used
    places = imagedevice.places(load(path).image())
    if places:
        return _estimate(load(path), places[0].loop.device, used)
    with held(node, path, "estimate") as disk:
        image = disk.image()
        found = imagedevice.part(image, disk.descriptor)
        with imagedevice.device(image, found, readonly=True) as loop:
            return _estimate(disk, loop.device, used)


def _estimate(disk: Disk, device: Path, used: int) -> Estimate:
    d, image = disk.descriptor, disk.image()
    found = imagedevice.part(image, d)
    try:
        least = filesystem.minimum(device, imagedevice.kind(image, found))
    except Unsupported:
        least = 0
    around = d.disk_size - found.length  # what a partition table takes
    small = min(d.disk_size, -(-(least + around) // CLUSTER) * CLUSTER)
    allocated = min(d.disk_size, image.stat().st_blocks * 512)
    minimum = small if least else d.disk_size
    return Estimate(d.disk_size, minimum, bool(least), d.blocksize, allocated, used)


def reserve(node: Node, path: str, progress: Progress) -> int:
    """Keep space for the whole disk, so that no write to it can find the pool full.

    What it discards later is given up again.  Returns its size.
    Raises NoSpace (nothing is given back then that was had before), Busy, Unsupported.
    """
    with held(node, path, "reserve", online=True) as disk:
        image = disk.image()
        raw = disk.descriptor.mode == RAW
        start = 0 if raw else identity.data_offset(image)
        size = disk.descriptor.disk_size
        progress.stage("Reserving space")
        with no_space(image), opened(image, write=True) as fd:
            for done in range(0, size, _STEP):
                progress.check()
                os.posix_fallocate(fd, start + done, min(_STEP, size - done))
                progress.advance(done, size)
            os.fsync(fd)
    return size
