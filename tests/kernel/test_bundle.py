"""A ploop disk as the disk of a virtual machine: its content is the guest's, and stays as it is."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import faults
from bundles import MIB, got, put
from pyvz.errors import Busy, StorageError, VZError
from pyvz.image import disk, identity
from pyvz.image.report import Report
from pyvz.linux import imagelock
from pyvz.model.task import NoProgress
from pyvz.storage import bundle
from pyvz.storage.ploopdisk import Disk

GUID = "{11111111-2222-4333-8444-555555555555}"
OTHER = "{11111111-2222-4333-8444-666666666666}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "data.hdd"
    made.mkdir()
    identity.create(made / disk.BASE_FILE, 8 * MIB)
    Disk(made).save(disk.Descriptor(disk_size=8 * MIB))
    return made


@pytest.mark.requires("root")
def test_its_life(path: Path, tmp_path: Path) -> None:
    assert bundle.is_one(path)
    assert not bundle.is_one(tmp_path)
    put(path, b"first")
    bundle.keep(path, GUID)
    assert bundle.grow(path, 11 * MIB + 1) == 12 * MIB
    put(path, b"second")
    put(path, b"end", 12 * MIB - 3)
    bundle.keep(path, OTHER)
    for _ in range(2):  # as after a death in the middle
        bundle.switch(path, GUID)
    assert (got(path, 6), bundle.find(path).size) == (b"first\0", 8 * MIB)
    assert Disk(path).descriptor().disk_size == 8 * MIB
    bundle.switch(path, OTHER)
    assert (got(path, 6), got(path, 3, 12 * MIB - 3)) == (b"second", b"end")
    copied = tmp_path / "copy.hdd"
    bundle.copy(path, copied)
    assert (got(copied, 6), len(Disk(copied).descriptor().images)) == (b"second", 1)
    for guid in (GUID, OTHER, OTHER):
        bundle.forget(path, guid)
    left = sorted(each.name for each in path.iterdir())
    assert left == sorted([disk.NAME, f"{disk.NAME}.lck", bundle.find(path).image.name])
    for _ in range(2):
        bundle.remove(path)
    assert not path.exists()


@pytest.mark.requires("root")
def test_what_no_machine_can_have(path: Path) -> None:
    place = bundle.find(path)
    with place.image.open("r+b") as stream:
        stream.truncate(place.offset + place.size + 512)
    with pytest.raises(StorageError, match="tail that belongs to nothing"):
        bundle.find(path)
    with place.image.open("r+b") as stream:
        stream.truncate(place.offset + place.size - 512)
    with pytest.raises(StorageError, match="cut off"):
        bundle.find(path)


@pytest.mark.requires("root")
def test_a_qemu_keeps_others_away(path: Path) -> None:
    image = bundle.find(path).image
    assert not imagelock.held(image)
    assert not imagelock.held(path / "nothing")
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:  # one byte, as QEMU locks it for writing
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        assert imagelock.held(image)
        with pytest.raises(Busy, match="virtual machine that runs"):
            Disk(path).check_idle()
        with pytest.raises(Busy):
            bundle.switch(path, GUID)
        assert bundle.grow(path, 9 * MIB) == 9 * MIB  # the machine's own vzd may
    finally:
        os.close(fd)
    Disk(path).check_idle()


@pytest.mark.parametrize(
    ("size", "cluster"), [(8 * MIB, MIB), (MIB + (32 << 10), 32 << 10), (3 << 19, 1 << 19)]
)
def test_made_of_any_size(tmp_path: Path, size: int, cluster: int) -> None:
    """What comes from elsewhere keeps its size: the guest must not see another one."""
    place = bundle.create(tmp_path / "new.hdd", size)
    assert (place.size, place) == (size, bundle.find(tmp_path / "new.hdd"))
    found = Disk(tmp_path / "new.hdd").descriptor()
    assert (found.disk_size, found.blocksize) == (size, cluster)
    assert identity.check(place.image) == Report()
    assert place.image.stat().st_blocks * 512 < MIB
    bundle.grow(tmp_path / "new.hdd", 4 * size)


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    """Nothing is left, and what was there stays."""
    for size in (0, 512, MIB + 512):
        with pytest.raises(StorageError):
            bundle.create(tmp_path / "new.hdd", size)
    assert not list(tmp_path.iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(FileExistsError):
        bundle.create(tmp_path / "other", MIB)
    assert (tmp_path / "other/file").exists()


@pytest.mark.requires("root")
def test_snapshots_go_before_it(path: Path, tmp_path: Path) -> None:
    """The snapshots are copied, then the image that takes the writes is made, then filled."""
    target = tmp_path / "target.hdd"
    bundle.copy_snapshots(path, target, NoProgress())  # it has none
    assert not target.exists()
    assert bundle.snapshots(path) == ()
    put(path, b"first")
    bundle.keep(path, GUID)
    bundle.grow(path, 12 * MIB)
    put(path, b"second")
    bundle.copy_snapshots(path, target, NoProgress())
    place = bundle.create(target, 12 * MIB)
    put(target, b"third")
    assert bundle.snapshots(target) == bundle.snapshots(path)
    assert place.size == 12 * MIB
    bundle.switch(target, GUID)
    assert (got(target, 6), bundle.find(target).size) == (b"first\0", 8 * MIB)
    with pytest.raises(StorageError, match="blocks"):
        bundle.create(target, 12 * MIB + (32 << 10))


@pytest.mark.requires("root")
def test_copied_whole(path: Path, tmp_path: Path) -> None:
    put(path, b"first")
    bundle.keep(path, GUID)
    put(path, b"second")
    bundle.copy_whole(path, tmp_path / "copy.hdd", NoProgress())
    assert got(tmp_path / "copy.hdd", 6) == b"second"
    bundle.switch(tmp_path / "copy.hdd", GUID)
    assert got(tmp_path / "copy.hdd", 5) == b"first"
    assert got(path, 6) == b"second"


VERBS: tuple[Callable[[Path, Path], object], ...] = (
    lambda _, target: bundle.create(target, 8 * MIB),
    lambda source, target: bundle.copy_snapshots(source, target, NoProgress()),
    lambda source, target: bundle.copy_whole(source, target, NoProgress()),
    bundle.copy,
)


@pytest.mark.requires("root")
@pytest.mark.parametrize("verb", VERBS)
def test_whole_or_not_there(
    path: Path, tmp_path: Path, verb: Callable[[Path, Path], object]
) -> None:
    """An error at any step leaves nothing; after a death the rest goes with its directory."""
    put(path, b"first")
    bundle.keep(path, GUID)
    target, before = tmp_path / "new.hdd", faults.world(path)
    for number in range(1, 100):
        failed = True
        failing = faults.at_step(number, faults.fail, tmp_path)
        with suppress(OSError, VZError), failing as seen:
            verb(path, target)
            failed = False
        if len(seen) < number:
            break
        assert target.exists() is not failed, f"step {number} of {seen}"
        bundle.remove(target)
        assert {each.name for each in tmp_path.iterdir()} == {path.name}, f"step {number} of {seen}"
        assert faults.world(path) == before
    assert number > 4
    assert target.exists()
