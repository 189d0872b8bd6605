"""The size of a ploop disk: growing it, mounted or not, and making it smaller.

Growing goes from the outside in (file, block table, header, device, file system), shrinking from
the inside out, so that a crash between two steps leaves a file system that is smaller than its
disk.  Asked again, each step that is done already does nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from pyvz.errors import InvalidState, Unsupported
from pyvz.image import gpt, identity
from pyvz.image.file import opened
from pyvz.linux import filesystem, loopdevice
from pyvz.storage import ploopdisk
from pyvz.storage.ploopdisk import Disk

_DISCARD_TIMEOUT: Final = 60.0
_DISCARD_PAUSE: Final = 0.2
SPARE: Final = 1 << 20  # a cluster: what rounding may take away


def grow(found: Disk, image: Path, size: int) -> None:
    """Make the disk, whose top is `image`, `size` bytes large; raises Unsupported, NoSpace."""
    places = found.mounted()
    if not places:
        found.check_idle()
        if identity.in_use(image):
            ploopdisk.recover(image)
        grow_image(image, size)
        return
    part = ploopdisk.part_of(image)
    if part.kind == "ext4" and not filesystem.can_grow_ext4_online():
        raise Unsupported(
            "ext4 cannot be grown while it is mounted on this node (no CAP_SYS_RESOURCE)",
            hint="Stop the container and try again.",
        )
    _grow_file(image, size)
    part = ploopdisk.part_of(image)
    for loop in found.loops():
        loopdevice.resize(loop.device, part.size)
    with ploopdisk.directory(places[0].target) as mounted:
        filesystem.grow_online(mounted, part.kind or "", part.size)


def grow_image(image: Path, size: int) -> None:
    """Make an image that is mounted nowhere, and its file system, `size` bytes large."""
    _grow_file(image, max(size, identity.size(image)))
    part = ploopdisk.part_of(image)
    if part.size > filesystem.space_at(image, part.offset).spanned + SPARE:
        with ploopdisk.attached(image) as (loop, kind):
            filesystem.resize_offline(loop.device, kind, part.size)
        ploopdisk.wait_detached(image)


def shrink(found: Disk, image: Path, size: int) -> None:
    """Make the unmounted disk, whose top is `image`, smaller; raises InvalidState, NoSpace."""
    if found.mounted():
        raise InvalidState(
            "A disk cannot be made smaller while it is mounted", hint="Stop the container."
        )
    found.check_idle()
    if len(found.descriptor().images) > 1:
        raise InvalidState(
            "A disk with snapshots cannot be made smaller", hint="Delete the snapshots."
        )
    old = ploopdisk.partition_of(image)
    size = -(-size // SPARE) * SPARE  # as the image rounds it
    inside = size if old is None else size - 2 * old.offset  # the copy of the table is behind it
    with ploopdisk.attached(image) as (loop, kind):
        if kind != "ext4":
            raise Unsupported(f"A disk with {kind} in it cannot be made smaller")
        filesystem.resize_offline(loop.device, kind, inside)
    ploopdisk.wait_detached(image)
    if old is not None:
        _write_table(image, size, old)
    identity.shrink(image, size)


def _grow_file(image: Path, size: int) -> None:
    """Grow the image, and the partition in it, if it has one."""
    old = ploopdisk.partition_of(image)
    size = identity.grow(image, size)
    if old is not None:
        _write_table(image, size, old)


def _write_table(image: Path, size: int, old: gpt.Partition) -> None:
    with opened(image, write=True) as fd:
        gpt.write(fd, identity.data_offset(image), size, old)
        os.fsync(fd)


def settled(image: Path) -> int:
    """Return the blocks of the image when they have become no fewer for a moment.

    xfs discards in the background: FITRIM returns before (xfs_discard_extents, since Linux 6.6).
    """
    deadline = time.monotonic() + _DISCARD_TIMEOUT
    blocks, since = image.stat().st_blocks, time.monotonic()
    while since + _DISCARD_PAUSE > (now := time.monotonic()) and now < deadline:
        time.sleep(_DISCARD_PAUSE / 10)
        if (seen := image.stat().st_blocks) != blocks:
            blocks, since = seen, now
    return blocks
