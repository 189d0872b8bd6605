"""Snapshots of a disk that can be read like the disk itself: what there are, and how they arrive.

Such a disk can be brought elsewhere snapshot by snapshot, each by what differs from the one before,
as long as whoever receives it keeps what it was between two.
"""

from __future__ import annotations

from collections.abc import Callable
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


# Writes a disk with its snapshots: as `base.Fill`; calls what it is given when the next snapshot is
# what has been written by then.
FillShots = Callable[[int, int, Callable[[], None]], None]


class ShotImages(Protocol):
    """A driver with the flag shot_images; `read_snapshot` reads one."""

    def shots(self, home: Path, *, disk: str = ROOT_DISK) -> Shots:
        """Return the snapshots of a disk."""

    def restore_shots(
        self,
        home: Path,
        content: tuple[int, Shots],
        fill: FillShots,
        *,
        disk: str = ROOT_DISK,
    ) -> None:
        """Make a disk with snapshots and content of the caller's: absent -> created, all or none.

        content: how large it is in the end, and its snapshots as they are told.  What `fill` raises
        undoes everything.  Raises StorageError (a tree that cannot be, a snapshot that is missing).
        """


def of(driver: StorageDriver, home: Path) -> ShotImages | None:
    """Return `driver` as one with such snapshots in `home`, None when it is none."""
    return cast("ShotImages", driver) if driver.capabilities(home).shot_images else None
