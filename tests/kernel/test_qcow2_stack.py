"""Thin ploop disks of OpenVZ that run where they lie, and come back into the form that we have."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import thinploop
from pyvz.errors import (
    AlreadyExists,
    InvalidState,
    NotFound,
    PrivateMissing,
    StorageError,
    Unsupported,
)
from pyvz.image import descriptor, identity
from pyvz.linux import filesystem, mount
from pyvz.model.task import NoProgress
from pyvz.operations import image
from pyvz.storage import base, ploop, qcow2
from pyvz.storage.qcow2adopt import refuse_below
from thinploop import GUIDS, MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

SIZE = 128 * MIB
CONTENTS = (b"one", b"two", b"three")
LATER = "{99999999-0000-4000-8000-000000000009}"


@pytest.fixture(scope="module")
def raws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, list[Path]]]:
    made = {}
    for table in (False, True):
        directory = tmp_path_factory.mktemp("raws")
        made[table] = thinploop.states(directory, CONTENTS, SIZE, table=table)
    yield made
    for paths in made.values():
        for path in paths:
            path.unlink()


@pytest.fixture
def driver() -> qcow2.Driver:
    return qcow2.Driver()


@pytest.fixture(params=[False, True], ids=["plain", "partition"])
def home(request: pytest.FixtureRequest, tmp_path: Path, raws: dict[bool, list[Path]]) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    version = 1 if request.param else 2
    thinploop.stack(made / "root.hdd", raws[request.param], version=version)
    (made / ".ve.layout").symlink_to("5")
    return made


def hashes(home: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((home / "root.hdd").glob("root.hds*"))
    }


def content(driver: base.StorageDriver, home: Path, target: Path) -> bytes:
    driver.mount(home, target)
    try:
        return (target / "file").read_bytes()
    finally:
        driver.umount(home, target)


def test_runs_where_it_lies_and_comes_back(
    driver: qcow2.Driver, home: Path, tmp_path: Path
) -> None:
    target, seen = tmp_path / "root", tmp_path / "seen"
    assert base.find(home).name == "ploop"
    with pytest.raises(StorageError, match="identity form"):
        ploop.Driver().mount(home, target)
    before = hashes(home)
    assert driver.adopt(home)
    assert not driver.adopt(home)
    assert base.find(home).name == "qcow2"
    assert base.layout(home) == 104
    driver.mount(home, target)
    assert (target / "file").read_bytes() == b"three"
    assert (target / "since1").stat().st_size == MIB
    (target / "file").write_bytes(b"four")
    driver.snapshot(home, LATER)
    (target / "file").write_bytes(b"five")
    for guid, expected in ((GUIDS[0], b"one"), (GUIDS[1], b"two"), (LATER, b"four")):
        driver.mount_snapshot(home, guid, seen)
        assert (seen / "file").read_bytes() == expected
        driver.umount_snapshot(home, guid, seen)
    with pytest.raises(AlreadyExists):
        driver.snapshot(home, GUIDS[0])
    with pytest.raises(InvalidState, match="below"):
        driver.delete_snapshot(home, GUIDS[0])
    with pytest.raises(NotFound):
        driver.delete_snapshot(home, GUIDS[5])
    with pytest.raises((Unsupported, InvalidState)):
        driver.resize(home, SIZE // 2)
    with pytest.raises(InvalidState, match="must not be touched"):
        refuse_below(home / "root.hdd")
    driver.umount(home, target)
    assert content(driver, home, target) == b"five"
    assert driver.usage(home).total > 0.7 * SIZE
    assert hashes(home) == before  # nothing of OpenVZ's was written
    subprocess.run(["qemu-img", "check", "-q", home / "qcow2/disk.qcow2"], check=True)

    with pytest.raises(InvalidState, match="would be lost"):
        driver.switch(home, GUIDS[0])
    driver.switch(home, LATER)
    assert content(driver, home, target) == b"four"
    assert not driver.hand_over(home, "simfs", NoProgress())
    assert driver.hand_over(home, "ploop", NoProgress())
    assert not (home / "qcow2").exists()
    found = base.find(home)
    assert found.name == "ploop"
    d = descriptor.load(home / "root.hdd/DiskDescriptor.xml")
    assert [each.guid for each in d.chain()] == [GUIDS[0], GUIDS[1], LATER, d.top]
    assert identity.is_identity(home / "root.hdd" / d.file_of(d.top))
    assert content(found, home, target) == b"four"
    found.switch(home, LATER)
    assert content(found, home, target) == b"four"


def test_grows_and_keeps_its_size(driver: qcow2.Driver, home: Path, tmp_path: Path) -> None:
    """Mounted or not, with a partition table or without; through a switch, and the way back."""
    target = tmp_path / "root"
    before = hashes(home)
    driver.adopt(home)
    driver.resize(home, 2 * SIZE)
    assert content(driver, home, target) == b"three"
    assert 1.7 * SIZE < driver.usage(home).total <= 2 * SIZE
    driver.mount(home, target)
    expected = 3 * SIZE
    if filesystem.can_grow_ext4_online():
        driver.resize(home, expected)
    else:
        with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
            driver.resize(home, expected)
        expected = 2 * SIZE
    assert 0.85 * expected < os.statvfs(target).f_blocks * os.statvfs(target).f_frsize <= expected
    driver.umount(home, target)
    driver.switch(home, GUIDS[0])
    assert content(driver, home, target) == b"one"
    assert 0.85 * expected < driver.usage(home).total <= expected
    assert hashes(home) == before
    assert driver.hand_over(home, "ploop", NoProgress())
    found = ploop.Driver()
    assert content(found, home, target) == b"one"
    assert 0.85 * expected < found.usage(home).total <= expected
    image.complete(home / "root.hdd", NoProgress())  # as `prlctl convert` does
    found.switch(home, GUIDS[1])
    assert content(found, home, target) == b"two"
    assert 0.85 * expected < found.usage(home).total <= expected
    found.remove(home, NoProgress())


def test_switch_to_what_lies_below(driver: qcow2.Driver, home: Path, tmp_path: Path) -> None:
    target = tmp_path / "root"
    driver.adopt(home)
    driver.switch(home, GUIDS[1])
    assert content(driver, home, target) == b"two"
    other = tmp_path / "other"
    other.mkdir()
    driver.clone(home, other, NoProgress())
    assert content(driver, other, target) == b"two"
    driver.switch(home, GUIDS[0])
    assert driver.hand_over(home, "ploop", NoProgress())
    assert content(base.find(home), home, target) == b"one"
    driver.remove(other, NoProgress())
    assert not list(other.iterdir())
    with pytest.raises(PrivateMissing):
        base.find(other)


@pytest.mark.parametrize("damage", ["cut", "table", "missing", "link", "in use"])
def test_a_damaged_one_is_refused_untouched(
    driver: qcow2.Driver, home: Path, tmp_path: Path, damage: str
) -> None:
    image = home / f"root.hdd/root.hds.{GUIDS[0]}"
    if damage == "cut":
        os.truncate(image, image.stat().st_size - MIB)
    elif damage == "table":
        with image.open("r+b") as stream:
            stream.seek(64)
            stream.write(b"\x01\0\0\0" * 3)
    elif damage == "missing":
        image.unlink()
    elif damage == "link":
        image.rename(tmp_path / "elsewhere")
        image.symlink_to(tmp_path / "elsewhere")
    else:
        top = home / f"root.hdd/root.hds.{GUIDS[1]}"
        identity.set_in_use(top)
        assert driver.adopt(home)
        assert not identity.in_use(top)
        assert content(driver, home, tmp_path / "root") == b"three"
        return
    before = hashes(home) if damage != "missing" else {}
    with pytest.raises((StorageError, NotFound)):
        driver.adopt(home)
    assert not (home / "qcow2").exists()
    assert not (home / "qcow2.new").exists()
    assert damage == "missing" or hashes(home) == before
    assert not mount.mounts(home.resolve())
