"""The snapshots of a disk, brought elsewhere one after the other; those of ploop are images."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import places
from pyvz.errors import StorageError
from pyvz.linux import filecopy
from pyvz.linux.filecopy import opened
from pyvz.model.task import NoProgress
from pyvz.storage import ploop, qcow2
from pyvz.storage.daemon import why_not

pytestmark = pytest.mark.requires("root", "loop")

SIZE = 512 << 20
GUID = "{11111111-2222-4333-8444-555555555555}"
OTHER = "{11111111-2222-4333-8444-666666666666}"


NOW = "{70797a76-0000-4d69-8000-000000000000}"
PIECE = 1 << 20


@pytest.mark.parametrize("driver", [ploop.Driver(), qcow2.Driver()], ids=lambda each: each.name)
def test_snapshots_arrive_one_after_the_other(
    tmp_path: Path, driver: ploop.Driver | qcow2.Driver
) -> None:
    """As from another node: one disk that is filled on and on, and kept between two."""
    if driver.name == "qcow2" and (why := why_not()):
        pytest.skip(why)
    with places.file_system("xfs", tmp_path / "pool", 4 << 30) as place:
        _there_and_again(driver, place, tmp_path / "root")


def _there_and_again(driver: ploop.Driver | qcow2.Driver, place: Path, target: Path) -> None:
    old, new = place / "old", place / "new"
    for each in (old, new):
        each.mkdir()
    small = 64 << 20
    driver.create(old, size=small, source=None, progress=NoProgress())
    guids = [GUID, OTHER, "{11111111-2222-4333-8444-777777777777}"]
    for guid in guids:
        note(driver, old, target, guid)
        driver.snapshot(old, guid)
        driver.resize(old, driver.size(old) + (16 << 20))
        if guid == OTHER:
            driver.switch(old, GUID)
    note(driver, old, target, "now")
    told = driver.shots(old)
    assert [shot.guid for shot in told.images] == guids
    assert [shot.size - small >> 20 for shot in told.images] == [0, 16, 32]
    if driver.name == "ploop":
        assert [shot.parent for shot in told.images] == ["", GUID, GUID]
        assert told.current == guids[2]
    driver.snapshot(old, NOW)

    driver.restore_shots(new, (driver.size(old), told), functools.partial(fill, driver, old))
    assert {entry.name for entry in new.iterdir()} <= {
        ".ve.layout",
        "root.hdd",
        "qcow2",
        "templates",
    }
    assert driver.shots(new) == told
    assert driver.check(new).clean
    assert noted(driver, new, target) == "now"
    for guid in guids:
        driver.switch(new, guid)
        assert noted(driver, new, target) == guid
        assert driver.size(new) == driver.size(old)
    (less := place / "less").mkdir()
    with pytest.raises(StorageError, match="Not all snapshots"):
        driver.restore_shots(less, (driver.size(old), told), lambda _fd, _offset, keep: keep())
    assert not driver.present(less)


def fill(
    driver: ploop.Driver | qcow2.Driver, old: Path, fd: int, offset: int, keep: Callable[[], None]
) -> None:
    """Write what the disk was at each snapshot, by what differs from the one before."""
    before = b""
    guids = [each.guid for each in driver.shots(old).images if each.guid != NOW]
    for guid in (*guids, NOW):
        with driver.read_snapshot(old, guid) as (image, begin, size), image.open("rb") as file:
            file.seek(begin)
            content = file.read(size)
        for start in range(0, size, PIECE):
            piece = content[start : start + PIECE]
            if piece != before[start : start + PIECE]:
                os.pwrite(fd, piece, offset + start)
        before = content
        if guid != NOW:
            keep()


def note(driver: ploop.Driver | qcow2.Driver, home: Path, target: Path, text: str) -> None:
    driver.mount(home, target)
    (target / "note").write_text(text)
    driver.umount(home, target)


def noted(driver: ploop.Driver | qcow2.Driver, home: Path, target: Path) -> str:
    driver.mount(home, target)
    text = (target / "note").read_text()
    driver.umount(home, target)
    return text


def test_a_clone_on_another_file_system_shares_what_they_share(tmp_path: Path) -> None:
    driver, target = ploop.Driver(), tmp_path / "root"
    with (
        places.file_system("xfs", tmp_path / "one", 1 << 30) as one,
        places.file_system("xfs", tmp_path / "two", 1 << 30) as two,
        places.file_system("ext4", tmp_path / "three", 1 << 30) as three,
    ):
        (home := one / "home").mkdir()
        driver.create(home, size=SIZE, source=None, progress=NoProgress())
        driver.mount(home, target)
        (target / "data").write_bytes(os.urandom(48 << 20))
        driver.umount(home, target)
        for guid in (GUID, OTHER):
            note(driver, home, target, guid)
            driver.snapshot(home, guid)
        note(driver, home, target, "now")
        before = taken(two)
        for place in (two, three):
            (new := place / "home").mkdir()
            driver.clone(home, new, NoProgress())
            assert driver.shots(new) == driver.shots(home)
            assert noted(driver, new, target) == "now"
            if place == two:  # three copies would take 144 MiB
                assert taken(two) - before < 100 << 20
            for guid in (GUID, OTHER):
                old, copied = ((path / "root.hdd" / f"root.hds.{guid}") for path in (home, new))
                with opened(old, os.O_RDONLY) as one_fd, opened(copied, os.O_RDONLY) as other_fd:
                    ranges = list(filecopy.either(one_fd, other_fd))
                    filecopy.compare(one_fd, other_fd, ranges, NoProgress())
                driver.switch(new, guid)
                assert noted(driver, new, target) == guid


def taken(place: Path) -> int:
    """Bytes in use of a file system."""
    os.sync()
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
