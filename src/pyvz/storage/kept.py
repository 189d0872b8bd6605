"""Snapshots of a disk that is a tree: one directory each, whole or not there.

    <directory>/{guid}/        a snapshot
    <directory>/{guid}.new/    being made; being removed

The directory itself is there while there are snapshots.  How a tree is made and removed is the
driver's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from pyvz.errors import AlreadyExists, NotFound
from pyvz.image.disk import normal_guid
from pyvz.linux import file
from pyvz.storage import base

_NEW = ".new"


class Kept:
    """The snapshots in a directory; `remove` takes a whole tree away and is idempotent."""

    def __init__(self, directory: Path, remove: Callable[[Path], None]) -> None:
        self._directory = directory
        self._remove = remove

    def names(self) -> list[str]:
        """Return the ids of the snapshots."""
        if self._directory.is_symlink() or not self._directory.is_dir():
            return []
        found = self._directory.iterdir()
        return sorted(entry.name for entry in found if entry.suffix != _NEW)

    def get(self, guid: str) -> Path:
        """Return where a snapshot is; raises NotFound, UsageError."""
        name = normal_guid(guid)
        if name not in self.names():
            raise NotFound(f"There is no snapshot {name} in {self._directory.parent}")
        return self._directory / name

    def all(self, order: Callable[[Path], int] = lambda _: 0) -> list[Path]:
        """Return where they are; order: which comes first."""
        return sorted((self._directory / name for name in self.names()), key=order)

    def make(self, guid: str, build: Callable[[Path], object]) -> None:
        """Have `build` make the tree at the path it is given, and give it its name.

        Raises AlreadyExists; what `build` raises undoes everything.
        """
        name = normal_guid(guid)
        if name in self.names():
            raise AlreadyExists(f"There is a snapshot {name} already")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        new = self._directory / f"{name}{_NEW}"
        self._remove(new)
        try:
            build(new)
            new.rename(self._directory / name)
        except BaseException:
            self._remove(new)
            self._leave()
            raise
        file.fsync_directory(self._directory)

    def take_from(
        self,
        other: Kept,
        copy: Callable[[Path, Path], object],
        order: Callable[[Path], int] = lambda _: 0,
    ) -> None:
        """Have `copy(source, target)` bring all snapshots of another disk here, and no others.

        order: which comes first.
        """
        self.remove()
        for each in other.all(order):
            self.make(each.name, functools.partial(copy, each))

    def delete(self, guid: str) -> None:
        """Rename a snapshot away, then remove it; what a killed one left goes too.

        Raises NotFound, Busy (mounted).
        """
        gone = self._directory / f"{normal_guid(guid)}{_NEW}"
        self._remove(gone)
        self._leave()
        found = self.get(guid)
        base.check_unmounted(found)
        found.rename(gone)
        self._remove(gone)
        self._leave()

    def remove(self) -> None:
        """Remove all of them.  Idempotent."""
        if self._directory.is_dir() and not self._directory.is_symlink():
            for entry in list(self._directory.iterdir()):
                self._remove(entry)
            self._leave()

    def _leave(self) -> None:
        """Remove the directory when nothing is in it any more."""
        if self._directory.is_dir() and not any(self._directory.iterdir()):
            self._directory.rmdir()
