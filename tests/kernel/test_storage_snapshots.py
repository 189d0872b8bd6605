"""Snapshots and linked clones, over all storage drivers: a part of the conformance suite."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

import faults
import places
from drivers import (
    SIZE,
    archive,
    caps,
    create,
    description,
    disks,
    driver,
    home,
    mounted,
    new_home,
    place,
    target,
)
from pyvz.errors import (
    AlreadyExists,
    AlreadyMounted,
    Busy,
    NotFound,
    PrivateMissing,
    Unsupported,
    VZError,
)
from pyvz.model.task import NoProgress
from pyvz.storage.base import Capabilities, StorageDriver

__all__ = ["archive", "caps", "disks", "driver", "home", "place", "target"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


class TestSnapshot:
    """Kept, gone back to, shown and forgotten; refused where the flag is down."""

    FIRST = "{11111111-1111-1111-1111-111111111111}"
    SECOND = "{22222222-2222-2222-2222-222222222222}"

    @pytest.fixture(autouse=True)
    def able(self, driver: StorageDriver, home: Path, caps: Capabilities) -> None:
        if not caps.snapshot:
            create(driver, home)
            with pytest.raises(Unsupported):
                driver.snapshot(home, self.FIRST)
            pytest.skip(f"{driver.name} has no snapshots here")

    def test_there_and_back(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path
    ) -> None:
        create(driver, home, archive)
        with mounted(driver, home, target):
            (target / "file").write_text("one")
            driver.snapshot(home, self.FIRST)
            (target / "file").write_text("two")
            driver.snapshot(home, self.SECOND)
            (target / "etc/hostname").unlink()
            with pytest.raises((AlreadyMounted, Busy)):
                driver.switch(home, self.FIRST)
        before = description(archive.parent / "tree")
        for guid, text in ((self.FIRST, "one"), (self.SECOND, "two"), (self.FIRST, "one")):
            driver.switch(home, guid)
            with mounted(driver, home, target):
                assert (target / "file").read_text() == text
                (target / "file").unlink()
                assert description(target) == before
                (target / "file").write_text("lost")
        driver.delete_snapshot(home, self.FIRST)
        driver.switch(home, self.SECOND)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "two"
        driver.remove(home, NoProgress())
        assert list(home.iterdir()) == []

    def test_refusals(self, driver: StorageDriver, home: Path) -> None:
        with pytest.raises(PrivateMissing):
            driver.snapshot(home, self.FIRST)
        create(driver, home)
        driver.snapshot(home, self.FIRST)
        with pytest.raises(AlreadyExists):
            driver.snapshot(home, self.FIRST)
        for verb in (driver.switch, driver.delete_snapshot):
            with pytest.raises(NotFound):
                verb(home, self.SECOND)
            with pytest.raises(VZError):
                verb(home, "../../etc")

    def test_is_shown_read_only_and_then_kept(
        self, driver: StorageDriver, home: Path, target: Path, place: Path
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_text("one")
            driver.snapshot(home, self.FIRST)
            (target / "file").write_text("two")
        shown = place / "shown"
        driver.mount_snapshot(home, self.FIRST, shown)
        try:
            assert (shown / "file").read_text() == "one"
            with pytest.raises(OSError, match="Read-only"):
                (shown / "file").write_text("x")
            with pytest.raises(Busy):
                driver.delete_snapshot(home, self.FIRST)
            with pytest.raises(AlreadyMounted):
                driver.mount_snapshot(home, self.FIRST, shown)
        finally:
            driver.umount_snapshot(home, self.FIRST, shown)
            driver.umount_snapshot(home, self.FIRST, shown)
        driver.switch(home, self.FIRST)

    def test_the_size_stays(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        if not caps.quota:
            pytest.skip(f"{driver.name} has no sizes here")
        create(driver, home)
        driver.snapshot(home, self.FIRST)
        driver.resize(home, 2 * SIZE)
        driver.switch(home, self.FIRST)
        with mounted(driver, home, target):
            assert 1.6 * SIZE < driver.usage(home).total <= 2 * SIZE

    def test_a_clone_has_them_too(
        self, driver: StorageDriver, place: Path, home: Path, target: Path
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_text("one")
            driver.snapshot(home, self.FIRST)
            (target / "file").write_text("two")
        second = new_home(place, "second")
        driver.clone(home, second, NoProgress())
        driver.remove(home, NoProgress())
        driver.switch(second, self.FIRST)
        with mounted(driver, second, target):
            assert (target / "file").read_text() == "one"

    @pytest.mark.parametrize(
        "stride", [pytest.param(1, marks=pytest.mark.long, id="all"), pytest.param(7, id="some")]
    )
    @pytest.mark.parametrize("what", ["snapshot", "switch", "delete_snapshot"])
    def test_killed_at_any_step(
        self, driver: StorageDriver, home: Path, target: Path, what: str, stride: int
    ) -> None:
        """As before or as after, and the same verb again finishes it."""
        create(driver, home)

        def write(text: str) -> None:
            with mounted(driver, home, target):
                (target / "file").write_text(text)

        for step in range(1 + len(what + driver.name) % stride, 200, stride):
            with contextlib.suppress(NotFound):
                driver.delete_snapshot(home, self.FIRST)
            write("one")
            if what != "snapshot":
                driver.snapshot(home, self.FIRST)
                write("two")
            verb = getattr(driver, what)
            died = faults.killed_at(step, lambda verb=verb: verb(home, self.FIRST), home)
            with mounted(driver, home, target):
                assert (target / "file").read_text() in {"one", "two"}
            with contextlib.suppress(NotFound, AlreadyExists):
                verb(home, self.FIRST)
            if what == "delete_snapshot":
                driver.snapshot(home, self.FIRST)
            if what == "switch":
                with mounted(driver, home, target):
                    assert (target / "file").read_text() == "one"
            if not died:
                break
        else:
            pytest.fail("it does not end")
        driver.remove(home, NoProgress())
        assert list(home.iterdir()) == []


class TestLinkedClone:
    def test_shares_or_is_refused(
        self, driver: StorageDriver, place: Path, target: Path, archive: Path, tmp_path: Path
    ) -> None:
        first, second = new_home(place, "first"), new_home(place, "second")
        create(driver, first, archive)
        if not driver.capabilities(place).linked_clone:
            with pytest.raises(Unsupported):
                driver.linked_clone(first, second, NoProgress())
            return
        with (
            places.file_system("ext4", tmp_path / "elsewhere", 64 << 20) as elsewhere,
            pytest.raises(Unsupported),
        ):
            driver.linked_clone(first, new_home(elsewhere, "third"), NoProgress())
        driver.linked_clone(first, second, NoProgress())
        with mounted(driver, second, target):
            assert description(target) == description(archive.parent / "tree")
