"""A ploop disk as one raw image: copied out at one moment, and made anew from its content."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pyvz.image import descriptor, identity
from pyvz.image import disk as format_
from pyvz.image.disk import Descriptor
from pyvz.model.task import NoProgress
from pyvz.storage import ploopdisk
from pyvz.storage.ploopdisk import Disk

Fill = Callable[[int, int], None]  # (descriptor of the image file, where the disk begins in it)


def copy_out(found: Disk, target: Path) -> tuple[int, int]:
    """Make `target` a copy of the top image, without writes meanwhile; return where the disk is."""
    with found.locked(), ploopdisk.still(found):
        ploopdisk.copy(found.top(), target, NoProgress())
    return identity.data_offset(target), identity.size(target)


def fill_new(new: Path, size: int, fill: Fill) -> None:
    """Make a disk of `size` bytes in the directory `new` and let `fill` write its content.

    It is marked as not closed cleanly: the content may be that of a mounted file system, so the
    first mount checks it.
    """
    image = new / format_.BASE_FILE
    identity.create(image, size)
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fill(fd, identity.data_offset(image))
        os.fsync(fd)
    finally:
        os.close(fd)
    identity.set_in_use(image)
    descriptor.save(new / descriptor.NAME, Descriptor(identity.size(image)))
