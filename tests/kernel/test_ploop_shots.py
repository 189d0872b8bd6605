"""The snapshots of a ploop disk as images that are brought elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import places
from pyvz.image import identity
from pyvz.linux import filecopy
from pyvz.linux.extents import data_ranges
from pyvz.linux.file import copy_sparse
from pyvz.linux.filecopy import opened
from pyvz.model.task import NoProgress
from pyvz.storage import ploop

pytestmark = pytest.mark.requires("root", "loop")

SIZE = 512 << 20
GUID = "{11111111-2222-4333-8444-555555555555}"
OTHER = "{11111111-2222-4333-8444-666666666666}"


def test_snapshots_arrive_as_images(tmp_path: Path) -> None:
    """As from another node: one image that is filled on and on, and a copy of it between two."""
    with places.file_system("xfs", tmp_path / "pool", 4 << 30) as place:
        _there_and_again(ploop.Driver(), place, tmp_path / "root")


def _there_and_again(driver: ploop.Driver, place: Path, target: Path) -> None:
    old, new = place / "old", place / "new"
    for each in (old, new, place / "kept"):
        each.mkdir()
    driver.create(old, size=SIZE, source=None, progress=NoProgress())
    guids = [GUID, OTHER, "{11111111-2222-4333-8444-777777777777}"]
    for guid in guids:
        note(driver, old, target, guid)
        driver.snapshot(old, guid)
        driver.resize(old, driver.size(old) + (128 << 20))
        if guid == OTHER:
            driver.switch(old, GUID)
    note(driver, old, target, "now")
    told = driver.shots(old)
    assert [shot.guid for shot in told.images] == guids
    assert [shot.parent for shot in told.images] == ["", GUID, GUID]
    assert [shot.size - SIZE >> 20 for shot in told.images] == [0, 128, 256]
    assert told.current == guids[2]
    files = [place / "kept" / guid for guid in guids]

    def fill(fd: int, offset: int) -> None:
        for guid, file in zip((*guids, ""), (*files, None), strict=True):
            image = driver.image_file(old)
            if guid:
                with driver.read_snapshot(old, guid) as (image, *_):
                    pass
            begin = identity.data_offset(image)
            with image.open("rb") as source:
                for each in data_ranges(source.fileno(), begin, image.stat().st_size):
                    data = os.pread(source.fileno(), each.length, each.start)
                    os.pwrite(fd, data, each.start - begin + offset)
            if file is not None:
                copy_sparse(f"/proc/{os.getpid()}/fd/{fd}", file)

    driver.restore_image(new, driver.size(old), fill)
    driver.keep_shots(new, told, files)
    assert driver.shots(new) == told
    assert list((place / "kept").iterdir()) == []
    assert driver.check(new).clean
    assert noted(driver, new, target) == "now"
    for guid in guids:
        driver.switch(new, guid)
        assert noted(driver, new, target) == guid
        assert driver.size(new) == driver.size(old)


def note(driver: ploop.Driver, home: Path, target: Path, text: str) -> None:
    driver.mount(home, target)
    (target / "note").write_text(text)
    driver.umount(home, target)


def noted(driver: ploop.Driver, home: Path, target: Path) -> str:
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
