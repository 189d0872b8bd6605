"""A disk's image copied while it is written to: rounds of changed blocks, and a last one at rest.

    <home>/.moving/<disk>.<n>      the copy of round n, of one moment (shares blocks with the image)

Each round reads from such a copy, so it is of one moment; the next one reads only what has another
place on the node's file system than in the one before.  Where the pool shares no blocks the image
itself is read in the first round, and in the last one both are compared from end to end.
Every round reads its copy back and compares.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvz.linux import extents, file, filecopy
from pyvz.linux.extents import Range
from pyvz.linux.filecopy import Like, copy_like, opened
from pyvz.model.task import Progress
from pyvz.storage import base as storage
from pyvz.storage import shots

log = logging.getLogger(__name__)

SCRATCH: Final = ".moving"
_ENOUGH: Final = 4 << 20  # bytes: a round that small is followed by the last one
_ROUNDS: Final = 8


class Follower:
    """The copy of one image, from `home` to the same place in `new_home`."""

    def __init__(self, home: Path, new_home: Path, disk: str, progress: Progress) -> None:
        self._driver = storage.find(home)
        self._home = home
        self._disk = disk
        self._progress = progress
        self._shares = self._driver.capabilities(home).changed_blocks
        self.source = self._driver.image_file(home, disk=disk)
        self.target = new_home / self.source.relative_to(home)
        self.shots = tuple(self._shots())  # images of snapshots, as they were made
        self._like: Like | None = None
        self._last: Path | None = None  # the copy that the target is equal to
        self._round = 0

    def follow(self) -> None:
        """Copy everything, then what has changed meanwhile, until that is little."""
        self.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._copy_shots()
        copied = self._whole()
        while self._shares and copied > _ENOUGH and self._round < _ROUNDS:
            before, copied = copied, self._changes()
            if copied > before // 2:  # it is written faster than it can be copied
                break

    def finish(self) -> int:
        """Copy what is left of the image, which nobody writes to any more; return how much."""
        if self._shares:
            return self._changes()
        with (
            opened(self.source, os.O_RDONLY) as old,
            opened(self.target, os.O_RDWR) as new,
        ):
            other = (
                piece
                for piece in filecopy.pieces(filecopy.either(old, new))
                if filecopy.differ(old, new, piece)
            )
            copied = filecopy.copy(old, new, other, self._progress)
            os.ftruncate(new, os.fstat(old).st_size)
            filecopy.flush(new)
            filecopy.compare(old, new, filecopy.either(old, new), self._progress)
        return copied

    def _whole(self) -> int:
        source = self._keep()[0] if self._shares else self.source
        if self._shares and self._like is not None:
            copied_so = copy_like(source, self.target, self._like, self._progress)
            if copied_so is not None:
                self._last = source
                return copied_so
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with (
            opened(source, os.O_RDONLY) as old,
            opened(self.target, flags) as new,
        ):
            size = os.fstat(old).st_size
            os.ftruncate(new, size)
            os.fchmod(new, 0o600)
            copied = filecopy.copy(old, new, extents.data_ranges(old), self._progress)
            filecopy.flush(new)
            if self._shares:
                filecopy.compare(old, new, filecopy.either(old, new), self._progress)
        self._last = source if self._shares else None
        return copied

    def _shots(self) -> Iterator[Path]:
        images = shots.of(self._driver, self._home)
        if images is None:
            return
        for shot in images.shots(self._home, disk=self._disk).images:
            with self._driver.read_snapshot(self._home, shot.guid, disk=self._disk) as (path, *_):
                yield path

    def _copy_shots(self) -> None:
        """Copy each by what differs from the one before, where blocks can be shared there."""
        for source in self.shots:
            self._progress.check()
            target = self.target.with_name(source.name)
            like = self._like
            if like is None or copy_like(source, target, like, self._progress) is None:
                file.copy_sparse(source, target, self._progress)
            self._like = Like(source, target)

    def _changes(self) -> int:
        """Bring the target from the last copy to one of now."""
        before = self._last
        source, (offset, _size) = self._keep()
        assert before is not None  # noqa: S101  `follow` came first
        told = self._driver.image_changes(before, source)
        # What lies before the disk (a header) is small and always brought along.
        ranges = [Range(0, offset), *(Range(offset + start, length) for start, length in told)]
        with (
            opened(source, os.O_RDONLY) as old,
            opened(self.target, os.O_RDWR) as new,
        ):
            os.ftruncate(new, os.fstat(old).st_size)
            copied = filecopy.copy(old, new, ranges, self._progress)
            filecopy.flush(new)
            filecopy.compare(old, new, ranges, self._progress)
        before.unlink()
        self._last = source
        log.info("%s: round %d: %d bytes", self.source, self._round, copied)
        return copied

    def _keep(self) -> tuple[Path, tuple[int, int]]:
        """Return a copy of the image of now, and where the disk is in it."""
        self._round += 1
        copy = self._home / SCRATCH / f"{self._disk}.{self._round}"
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        return copy, self._driver.copy_image(self._home, copy, disk=self._disk)
