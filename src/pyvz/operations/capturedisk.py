"""Disks that are open as they were at one moment go into a repository, each as one image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pyvz.backup import content, image
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.image import Index, Source
from pyvz.backup.manifest import IMAGE, Disk, Manifest
from pyvz.linux.extents import Range
from pyvz.model.task import Progress


class Copy(NamedTuple):
    """One disk.  driver: of storage, or the format of a machine's image.

    changed: since the backup before; None: all of it has to be read.
    """

    name: str
    driver: str
    source: Source
    changed: Sequence[Range] | None


def back_up(
    copies: Iterable[Copy],
    store: tuple[Writer, Chunks],
    parent: Manifest | None,
    progress: Progress,
) -> tuple[Disk, ...]:
    """Store every disk; of those that PARENT has, only what changed since."""
    writer, chunks = store
    found = []
    for copy in copies:
        progress.stage(f"Backing up {copy.name}")
        before = disk_of(parent, copy.name, copy.driver)
        old: Index | None = None
        if copy.changed is not None and before is not None:
            old = content.index_of(before, chunks)
        changed = copy.changed if old is not None else None
        pages = image.back_up(copy.source, writer, progress, old=old, changed=changed)
        found.append(Disk(copy.name, IMAGE, copy.driver, copy.source.size, None, pages))
    return tuple(found)


def disk_of(parent: Manifest | None, name: str, driver: str) -> Disk | None:
    """Return the image of a disk in an earlier backup, where it was one of the same kind."""
    disks = parent.disks if parent is not None else ()
    alike = (each for each in disks if (each.name, each.form) == (name, IMAGE))
    return next((each for each in alike if each.driver == driver), None)


def source_of(path: Path, offset: int, size: int, stack: ExitStack) -> Source:
    """Open what `path` has from `offset` on, until STACK ends."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    stack.callback(os.close, fd)
    return Source(fd, offset, size)
