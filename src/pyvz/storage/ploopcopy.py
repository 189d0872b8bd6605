"""A ploop disk as one raw image: copied out at one moment, made anew from its content, compared."""

from __future__ import annotations

import os
from pathlib import Path

from pyvz.errors import Unsupported
from pyvz.image import descriptor, identity
from pyvz.image import disk as format_
from pyvz.image.disk import Descriptor
from pyvz.linux import file, filecopy
from pyvz.model.task import NoProgress, Progress
from pyvz.storage import base, changes, ploopdisk
from pyvz.storage.changes import Ranges
from pyvz.storage.ploopdisk import Disk

__all__ = ["Ranges", "changed", "copy_disk", "copy_out", "fill_new", "image_changes"]

TEMPLATES = "templates"


def copy_out(found: Disk, target: Path) -> tuple[int, int]:
    """Make `target` a copy of the top image, without writes meanwhile; return where the disk is."""
    with found.locked(), ploopdisk.still(found):
        ploopdisk.copy(found.top(), target, NoProgress())
    return identity.data_offset(target), identity.size(target)


def changed(found: Disk, since: str, until: str | None) -> Ranges:
    """Return what differs between two snapshots, or since one; raises NotFound, Unsupported."""
    with found.locked():
        old = found.image(since)
        if until is not None:
            return image_changes(old, found.image(until))
        with ploopdisk.still(found):
            return image_changes(old, found.top())


def image_changes(old: Path, new: Path) -> Ranges:
    """Return in which parts of the disk of `new` the two may differ; raises Unsupported."""
    offset = identity.data_offset(new)
    if identity.data_offset(old) != offset:
        raise Unsupported(f"The disk begins elsewhere in {old} than in {new}")
    return changes.between(old, new, offset, identity.size(new))


def fill_new(new: Path, size: int, fill: base.Fill) -> None:
    """Make a disk of `size` bytes in the directory `new` and let `fill` write its content.

    The content is that of a file system that was unmounted, or frozen (`copy_out`): the first mount
    replays a log at most, and needs no check before.
    """
    image = new / format_.BASE_FILE
    identity.create(image, size)
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fill(fd, identity.data_offset(image))
        os.fsync(fd)
    finally:
        os.close(fd)
    descriptor.save(new / descriptor.NAME, Descriptor(identity.size(image)))


def copy_disk(found: Disk, new: Path, progress: Progress) -> None:
    """Copy what the descriptor names, and the records of templates."""
    value = found.descriptor()
    like: filecopy.Like | None = None
    for image in value.images:
        progress.check()
        both = filecopy.Like(found.path / image.file, new / image.file)
        ploopdisk.copy(*both, progress, like)
        like = both
    if (found.path / TEMPLATES).is_dir():
        file.copy_tree(found.path / TEMPLATES, new / TEMPLATES, progress)
    descriptor.save(new / descriptor.NAME, value)
