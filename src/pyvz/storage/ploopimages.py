"""The images of a ploop disk for whoever copies them: that of the disk, and of each snapshot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from pyvz.errors import PrivateMissing, StorageError
from pyvz.image import identity
from pyvz.image.disk import BASE_FILE, NO_PARENT
from pyvz.linux import file
from pyvz.storage import base, diskname, ploopcopy
from pyvz.storage.base import ROOT_DISK
from pyvz.storage.ploopdisk import Disk
from pyvz.storage.shots import FillShots, ShotImage, Shots

KEPT: Final = ".arriving"  # in the home: images of snapshots that are not complete yet


class Images(base.Extras):
    """What the driver has of `base.Extras` and `shots.ShotImages` about images."""

    def changed(
        self, home: Path, since: str, until: str | None = None, *, disk: str = ROOT_DISK
    ) -> ploopcopy.Ranges:
        """Compare where the blocks of both images lie."""
        return ploopcopy.changed(self._disk(home, disk), since, until)

    def image_changes(self, old: Path, new: Path) -> ploopcopy.Ranges:
        """Compare where the blocks of both copies lie."""
        return ploopcopy.image_changes(old, new)

    def read_snapshot(
        self, home: Path, guid: str, *, disk: str = ROOT_DISK
    ) -> AbstractContextManager[tuple[Path, int, int]]:
        """Its image has it whole."""
        image = self._disk(home, disk).image(guid)
        return contextlib.nullcontext((image, identity.data_offset(image), identity.size(image)))

    def copy_image(self, home: Path, target: Path, *, disk: str = ROOT_DISK) -> tuple[int, int]:
        """Reflink the top image, frozen if it is mounted."""
        return ploopcopy.copy_out(self._disk(home, disk), target)

    def image_file(self, home: Path, *, disk: str = ROOT_DISK) -> Path:
        """Return the top image."""
        return self._disk(home, disk).top()

    def shots(self, home: Path, *, disk: str = ROOT_DISK) -> Shots:
        """Return what the descriptor says; what is temporary stays here."""
        found = self._disk(home, disk)
        d = found.descriptor()
        kept = [shot for shot in d.snapshots if shot.guid != d.top and not shot.temporary]
        parents = {shot.guid: shot.parent for shot in d.snapshots}
        known = {shot.guid for shot in kept}

        def below(guid: str) -> str:
            guid = parents[guid]
            while guid not in known and guid != NO_PARENT:
                guid = parents[guid]
            return "" if guid == NO_PARENT else guid

        images = (
            ShotImage(shot.guid, below(shot.guid), identity.size(found.image(shot.guid)))
            for shot in kept
        )
        return Shots(tuple(images), below(d.top))

    def restore_shots(
        self,
        home: Path,
        content: tuple[int, Shots],
        fill: FillShots,
        *,
        disk: str = ROOT_DISK,
    ) -> None:
        """Keep a copy of the image at each, which shares its blocks, and name them at the end."""
        size, shots = content
        folder = home / KEPT
        kept: list[Path] = []

        def fill_all(fd: int, offset: int) -> None:
            def keep() -> None:
                folder.mkdir(mode=0o700, exist_ok=True)
                path = folder / f"{disk}.{shots.images[len(kept)].guid}"
                file.copy_sparse(f"/proc/{os.getpid()}/fd/{fd}", path)
                kept.append(path)

            fill(fd, offset, keep)
            if len(kept) != len(shots.images):
                raise StorageError("Not all snapshots of the disk have come")

        self.restore_image(home, size, fill_all, disk=disk)
        self._name_shots(self._disk(home, disk), shots, kept)
        with contextlib.suppress(OSError):  # those of another disk are still in it
            folder.rmdir()

    def _name_shots(self, found: Disk, shots: Shots, files: Sequence[Path]) -> None:
        """Give each its size and its name beside the top; the descriptor commits all of them."""
        with found.locked():
            new = found.descriptor()
            for shot, path in zip(shots.images, files, strict=True):
                new = new.with_snapshot(shot.guid, f"{BASE_FILE}.{shot.guid}")
                identity.shrink(path, shot.size)
                path.rename(found.path / f"{BASE_FILE}.{shot.guid}")
            file.syncfs(found.path)
            parents = {shot.guid: shot.parent or NO_PARENT for shot in shots.images}
            parents[new.top] = shots.current or NO_PARENT
            found.save(new.with_parents(parents))

    def _disk(self, home: Path, disk: str) -> Disk:
        found = Disk(home / diskname.checked(disk))
        if not found.exists:
            raise PrivateMissing(f"There is no container disk in {home}")
        return found
