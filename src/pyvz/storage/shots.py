"""Snapshots of a disk that are images like the disk itself: what there are, and how they arrive.

A disk of which each snapshot is a whole image can be brought elsewhere snapshot by snapshot, each
by what differs from the one before, as long as whoever receives it keeps a copy between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from pyvz.storage.base import ROOT_DISK, StorageDriver


class ShotImage(NamedTuple):
    """One snapshot.  parent: the id of the one below, or "".  size: bytes of the disk then."""

    guid: str
    parent: str
    size: int


class Shots(NamedTuple):
    """All of one disk, as they were made.  current: the one below the disk as it is now, or ""."""

    images: tuple[ShotImage, ...] = ()
    current: str = ""


class ShotImages(Protocol):
    """A driver with the flag shot_images; `read_snapshot` reads one."""

    def shots(self, home: Path, *, disk: str = ROOT_DISK) -> Shots:
        """Return the snapshots of a disk."""

    def keep_shots(
        self, home: Path, shots: Shots, files: Sequence[Path], *, disk: str = ROOT_DISK
    ) -> None:
        """Give the created disk snapshots that it has not: absent -> there, all or none.

        files: one for each, a copy of the file that `restore_image` had filled up to there; they
        are taken away.  Raises StorageError (a tree that cannot be).
        """


def of(driver: StorageDriver, home: Path) -> ShotImages | None:
    """Return `driver` as one with such snapshots in `home`, None when it is none."""
    return cast("ShotImages", driver) if driver.capabilities(home).shot_images else None
