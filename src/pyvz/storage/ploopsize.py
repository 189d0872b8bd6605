"""The size of a ploop disk: growing it, mounted or not, and making it smaller.

Growing goes from the outside in (file, block table, header, device, file system), shrinking from
the inside out, so that a crash between two steps leaves a file system that is smaller than its
disk.  Asked again, each step that is done already does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyvz.errors import BadValue, InvalidState, Unsupported
from pyvz.image import identity
from pyvz.linux import filesystem, loopdevice
from pyvz.storage import ploopdisk
from pyvz.storage.ploopdisk import Disk

SPARE: Final = 1 << 20  # what rounding may take away


def check(image: Path, size: int, now: int) -> None:
    """Raise BadValue or Unsupported for a size that the image can never have."""
    if size <= 0:
        raise BadValue(f"A disk cannot have {size} bytes")
    if abs(size - now) >= SPARE and ploopdisk.has_partitions(image):
        raise Unsupported(
            "A disk with a partition table cannot be resized here",
            hint="Import it into a new container: ploop convert.",
        )


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
    identity.grow(image, size)
    part = ploopdisk.part_of(image)
    for loop in found.loops():
        loopdevice.resize(loop.device, part.size)
    with ploopdisk.directory(places[0].target) as mounted:
        filesystem.grow_online(mounted, part.kind or "", part.size)


def grow_image(image: Path, size: int) -> None:
    """Make an image that is mounted nowhere, and its file system, `size` bytes large."""
    if identity.grow(image, max(size, identity.size(image))) > _spanned(image):
        with ploopdisk.attached(image) as (loop, kind):
            filesystem.resize_offline(loop.device, kind, ploopdisk.part_of(image).size)
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
    with ploopdisk.attached(image) as (loop, kind):
        if kind != "ext4":
            raise Unsupported(f"A disk with {kind} in it cannot be made smaller")
        filesystem.resize_offline(loop.device, kind, size)
    ploopdisk.wait_detached(image)
    identity.shrink(image, size)


def _spanned(image: Path) -> int:
    """Return up to which size of the image its file system reaches, rounded up generously."""
    part = ploopdisk.part_of(image)
    return filesystem.space_at(image, part.offset).spanned + SPARE
