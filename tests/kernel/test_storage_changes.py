"""Changed blocks, over every storage driver: all that changed is told, and not the whole disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from drivers import caps, create, disks, driver, home, mounted, new_home, place, target
from pyvz.errors import NotFound, Unsupported, VZError
from pyvz.linux import extents
from pyvz.storage.base import Capabilities, StorageDriver

__all__ = ["caps", "disks", "driver", "home", "place", "target"]

STEP = 1 << 20  # what is read at once; disks begin at a multiple

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


class TestChangedBlocks:
    """What is told as changed is all that changed, and not the whole disk."""

    def test_between_two_copies(
        self, driver: StorageDriver, place: Path, target: Path, caps: Capabilities
    ) -> None:
        if not caps.changed_blocks or not caps.image:
            with pytest.raises((Unsupported, VZError, OSError)):
                driver.image_changes(place / "a", place / "b")
            return
        home = new_home(place, "home")
        create(driver, home)
        with mounted(driver, home, target):
            write(target / "file", b"1", 4 << 20)
            before, after = place / "before", place / "after"
            driver.copy_image(home, before)
            write(target / "file", b"2", 1 << 20)
            where = driver.copy_image(home, after)
        told = driver.image_changes(before, after)
        check_told(told, before, after, where)
        assert driver.image_changes(before, before) == []

    def test_between_snapshots_and_until_now(
        self, driver: StorageDriver, place: Path, target: Path, caps: Capabilities
    ) -> None:
        home = new_home(place, "home")
        first, second = (f"{{0000000{n}-0000-4000-8000-000000000000}}" for n in (1, 2))
        if not caps.changed_blocks or not caps.snapshot:
            create(driver, home)
            with pytest.raises(Unsupported):
                driver.changed(home, first)
            return
        create(driver, home)
        with mounted(driver, home, target):
            write(target / "file", b"1", 4 << 20)
        driver.snapshot(home, first)
        with mounted(driver, home, target):
            write(target / "file", b"2", 1 << 20)
        driver.snapshot(home, second)
        told = driver.changed(home, first, second)
        with driver.read_snapshot(home, first) as one, driver.read_snapshot(home, second) as two:
            assert one[1:] == two[1:]
            check_told(told, one[0], two[0], one[1:])
        with mounted(driver, home, target):
            write(target / "other", b"3", 1 << 20)
            now = driver.changed(home, first)
            assert sum(length for _, length in now) >= 2 << 20
            with pytest.raises(NotFound):
                driver.changed(home, "{00000009-0000-4000-8000-000000000000}")


def write(path: Path, byte: bytes, size: int) -> None:
    """Write the beginning of a file and have it on the disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(byte * size)
        file.flush()
        os.fsync(file.fileno())


def check_told(
    told: Sequence[tuple[int, int]], old: Path, new: Path, where: tuple[int, int]
) -> None:
    """TOLD is in order, has all in which the disks in two files differ, and is not much more."""
    end = 0
    for start, length in told:
        assert start >= end
        end = start + length
    assert 1 << 20 <= sum(length for _, length in told) < 64 << 20
    offset, size = where
    with old.open("rb") as one, new.open("rb") as two:
        files = (one.fileno(), two.fileno())
        spots = {
            at
            for fd in files
            for each in extents.data_ranges(fd, offset, offset + size)
            for at in range(each.start // STEP * STEP, each.end, STEP)
        }  # holes of both are equal
        for at in sorted(spots):
            first, second = (os.pread(fd, STEP, at) for fd in files)
            for spot in range(0, STEP, 4096) if first != second else ():
                if first[spot : spot + 4096] != second[spot : spot + 4096]:
                    place = at + spot - offset
                    assert any(s <= place < s + length for s, length in told), place
