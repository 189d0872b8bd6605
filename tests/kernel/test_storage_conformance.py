"""What every storage driver must do, run over all drivers that are found in the folder.

A new driver runs this suite unchanged: what it cannot do it says by its capabilities, and the
tests then check that it refuses.  Everything happens under a temporary directory; each test takes
its mounts and devices away again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import leaks
import places
from drivers import (
    SIZE,
    SMALL,
    archive,
    caps,
    create,
    description,
    disks,
    driver,
    fill,
    home,
    mounted,
    new_home,
    place,
    target,
)
from dying import Dying, cancel, in_child
from pyvz.errors import (
    AlreadyMounted,
    Busy,
    Cancelled,
    InvalidState,
    MountError,
    PrivateMissing,
    Unsupported,
    VZError,
)
from pyvz.linux import mount
from pyvz.model.task import NoProgress
from pyvz.storage import base
from pyvz.storage.base import Capabilities, StorageDriver

__all__ = ["archive", "caps", "disks", "driver", "home", "place", "target"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


class TestLife:
    """absent -> created -> mounted and back, each step twice."""

    def test_there_and_back(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path
    ) -> None:
        assert not driver.present(home)
        create(driver, home, archive)
        create(driver, home, archive)
        assert driver.present(home)
        driver.mount(home, target)
        driver.mount(home, target)
        assert (target / "etc/hostname").read_text() == "guest\n"
        assert driver.present(home)
        driver.umount(home, target)
        driver.umount(home, target)
        assert not mount.is_mount_point(target)
        assert list(target.iterdir()) == []
        driver.remove(home, NoProgress())
        driver.remove(home, NoProgress())
        assert not driver.present(home)
        assert list(home.iterdir()) == []

    def test_is_found_and_has_its_layout(self, driver: StorageDriver, home: Path) -> None:
        with pytest.raises(PrivateMissing):
            base.find(home)
        create(driver, home)
        assert base.find(home).name == driver.name
        assert base.layout(home) == driver.layout

    def test_unpacks_everything_as_it_was(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path
    ) -> None:
        create(driver, home, archive)
        with mounted(driver, home, target):
            assert description(target) == description(archive.parent / "tree")
            assert (target / "big").stat().st_blocks * 512 < 10 << 20

    def test_keeps_what_was_written(self, driver: StorageDriver, home: Path, target: Path) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_bytes(b"x" * 100_000)
            os.chown(target / "file", 12345, 54321)
        with mounted(driver, home, target):
            assert (target / "file").read_bytes() == b"x" * 100_000
            assert (target / "file").stat().st_uid == 12345

    def test_leaves_the_rest_of_the_home_alone(self, driver: StorageDriver, home: Path) -> None:
        (home / "ve.conf").write_text("")
        (home / "scripts").mkdir()
        create(driver, home)
        driver.remove(home, NoProgress())
        assert sorted(path.name for path in home.iterdir()) == ["scripts", "ve.conf"]


class TestMount:
    def test_absent_disk(self, driver: StorageDriver, home: Path, target: Path) -> None:
        with pytest.raises(PrivateMissing):
            driver.mount(home, target)

    def test_readonly(self, driver: StorageDriver, home: Path, target: Path) -> None:
        create(driver, home)
        with mounted(driver, home, target, readonly=True):
            with pytest.raises(OSError, match="Read-only"):
                (target / "file").write_text("x")
            with pytest.raises(AlreadyMounted):
                driver.mount(home, target)
            driver.mount(home, target, readonly=True)

    def test_does_not_cover_a_stranger(
        self, driver: StorageDriver, home: Path, target: Path, place: Path
    ) -> None:
        create(driver, home)
        target.mkdir(parents=True)
        mount.mount("tmpfs", target, "tmpfs")
        try:
            with pytest.raises(MountError):
                driver.mount(home, target)
        finally:
            mount.umount(target)

    def test_busy_is_said_and_nothing_is_detached(
        self, driver: StorageDriver, home: Path, target: Path
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_text("x")
            with (target / "file").open(), pytest.raises(Busy):
                driver.umount(home, target)
            assert mount.is_mount_point(target)
            assert (target / "file").read_text() == "x"

    def test_device_files_of_the_guest_open_nothing(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path
    ) -> None:
        create(driver, home, archive)
        with mounted(driver, home, target), pytest.raises(PermissionError):
            (target / "null").open("rb")


class TestUsage:
    def test_numbers_agree_with_df(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            usage = driver.usage(home)
            shown = os.statvfs(target)
            if caps.df_exact or not caps.quota:
                assert abs(usage.total - shown.f_blocks * shown.f_frsize) < 16 << 20
            assert 0 <= usage.used <= usage.total
            assert 0 < usage.free <= usage.total
            assert shown.f_files == 0 or 0 < usage.inodes_used <= usage.inodes
            if caps.df_exact:
                assert 0.8 * SIZE < usage.total <= SIZE
        assert driver.usage(home).total > 0

    def test_devices_are_disks(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            devices = driver.devices(home)
            for major, minor in devices:
                node = Path(f"/sys/dev/block/{major}:{minor}")
                assert node.exists()
                assert not (node / "partition").exists()
            assert devices or not caps.block_device


class TestSize:
    def test_size_is_enforced_or_refused(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        if not caps.quota:
            with pytest.raises(Unsupported):
                driver.create(home, size=SIZE, source=None, progress=NoProgress())
            assert list(home.iterdir()) == []
            return
        driver.create(home, size=SMALL, source=None, progress=NoProgress())
        with mounted(driver, home, target), pytest.raises(OSError, match=r"space|quota"):
            fill(target / "file", 2 * SMALL)

    def test_without_a_size_it_has_what_its_pool_has(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        driver.create(home, size=SMALL if caps.quota else None, source=None, progress=NoProgress())
        if caps.image or caps.block_device:
            with pytest.raises(Unsupported, match="without a size"):
                driver.unlimit(home)
            return
        with mounted(driver, home, target):
            driver.unlimit(home)
            assert not driver.usage(home).limited
            fill(target / "file", 2 * SMALL)
            driver.unlimit(home)
        if caps.quota:
            driver.resize(home, 4 * SMALL)
            assert driver.usage(home).total == 4 * SMALL
            with pytest.raises(InvalidState, match="in use"):
                driver.resize(home, SMALL)

    @pytest.mark.parametrize("factor", [2, 0.5])
    def test_resize(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities, factor: float
    ) -> None:
        create(driver, home)
        able = caps.quota and (caps.shrink if factor < 1 else True)
        wanted = int(SIZE * factor)
        if not able:
            with pytest.raises(Unsupported):
                driver.resize(home, wanted)
            return
        with mounted(driver, home, target):
            (target / "file").write_text("kept")
        driver.resize(home, wanted)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "kept"
            assert 0.8 * wanted < driver.usage(home).total <= wanted

    def test_grow_online(
        self, driver: StorageDriver, home: Path, target: Path, caps: Capabilities
    ) -> None:
        if not caps.grow_online:
            pytest.skip(f"{driver.name} cannot grow online here")
        create(driver, home)
        with mounted(driver, home, target):
            driver.resize(home, 2 * SIZE)
            assert 1.6 * SIZE < driver.usage(home).total <= 2 * SIZE


class TestClone:
    def test_is_equal_and_independent(
        self, driver: StorageDriver, place: Path, target: Path, archive: Path
    ) -> None:
        first, second = new_home(place, "first"), new_home(place, "second")
        create(driver, first, archive)
        driver.clone(first, second, NoProgress())
        driver.clone(first, second, NoProgress())
        with mounted(driver, second, target):
            assert description(target) == description(archive.parent / "tree")
            (target / "etc/hostname").write_text("second\n")
        driver.remove(second, NoProgress())
        with mounted(driver, first, target):
            assert (target / "etc/hostname").read_text() == "guest\n"

    def test_of_nothing(self, driver: StorageDriver, place: Path) -> None:
        with pytest.raises(PrivateMissing):
            driver.clone(new_home(place, "a"), new_home(place, "b"), NoProgress())

    def test_reflink_takes_no_space(
        self, driver: StorageDriver, place: Path, caps: Capabilities, archive: Path
    ) -> None:
        if not caps.reflink:
            pytest.skip(f"{driver.name} shares no blocks here")
        first, second = new_home(place, "first"), new_home(place, "second")
        create(driver, first, archive)
        subprocess.run(["sync", "-f", place], check=True)
        before = os.statvfs(place)
        driver.clone(first, second, NoProgress())
        subprocess.run(["sync", "-f", place], check=True)
        after = os.statvfs(place)
        assert (before.f_bfree - after.f_bfree) * before.f_frsize < 2 << 20


class TestInterrupted:
    """Called off or killed at any step: whole or absent, and the next step goes on."""

    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_create_called_off(
        self, driver: StorageDriver, home: Path, archive: Path, at: int
    ) -> None:
        with contextlib.suppress(Cancelled):
            driver.create(home, size=None, source=archive, progress=Dying(at, cancel))
            pytest.skip("it was over before")
        assert not driver.present(home)
        assert list(home.iterdir()) == []
        create(driver, home, archive)
        assert driver.present(home)

    @pytest.mark.parametrize("at", [1, 2])
    def test_clone_called_off(
        self, driver: StorageDriver, place: Path, archive: Path, at: int
    ) -> None:
        first, second = new_home(place, "first"), new_home(place, "second")
        create(driver, first, archive)
        with contextlib.suppress(Cancelled):
            driver.clone(first, second, Dying(at, cancel))
            return
        assert list(second.iterdir()) == []
        assert driver.present(first)

    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_create_killed(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path, at: int
    ) -> None:
        die = Dying(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        size = SIZE if driver.capabilities(home).quota else None
        ended = in_child(lambda: driver.create(home, size=size, source=archive, progress=die))
        assert ended in {0, -signal.SIGKILL}
        assert driver.present(home) == (ended == 0)
        _settle()
        create(driver, home, archive)
        with mounted(driver, home, target):
            assert description(target) == description(archive.parent / "tree")
        driver.remove(home, NoProgress())
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("at", [1, 2])
    def test_clone_killed(
        self, driver: StorageDriver, place: Path, target: Path, archive: Path, at: int
    ) -> None:
        first, second = new_home(place, "first"), new_home(place, "second")
        create(driver, first, archive)
        die = Dying(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        ended = in_child(lambda: driver.clone(first, second, die))
        assert driver.present(second) == (ended == 0)
        _settle()
        driver.remove(second, NoProgress())
        assert list(second.iterdir()) == []
        with mounted(driver, first, target):
            assert description(target) == description(archive.parent / "tree")

    def test_remove_called_off_is_whole_or_gone(
        self, driver: StorageDriver, home: Path, target: Path, archive: Path
    ) -> None:
        create(driver, home, archive)
        with contextlib.suppress(Cancelled):
            driver.remove(home, Dying(1, cancel))
        if driver.present(home):
            with mounted(driver, home, target):
                assert description(target) == description(archive.parent / "tree")
        driver.remove(home, NoProgress())
        assert list(home.iterdir()) == []

    def test_broken_archive_leaves_nothing(
        self, driver: StorageDriver, home: Path, archive: Path
    ) -> None:
        with archive.open("r+b") as file:
            file.truncate(1 << 20)
        with pytest.raises(VZError):
            create(driver, home, archive)
        assert not driver.present(home)
        assert list(home.iterdir()) == []

    def test_remove_of_a_mounted_one_is_busy(
        self, driver: StorageDriver, home: Path, target: Path
    ) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_text("x")
            with pytest.raises(Busy):
                driver.remove(home, NoProgress())
            assert (target / "file").read_text() == "x"
        assert driver.present(home)


def test_full_disk_leaves_nothing(driver: StorageDriver, tmp_path: Path, archive: Path) -> None:
    """No space in the pool: an error that says so, and no half disk."""
    with places.full(driver.name, tmp_path / "small") as small:
        home = new_home(small, "home")
        with pytest.raises((VZError, OSError), match=r"(?i)space"):
            create(driver, home, archive)
        assert not driver.present(home)
        assert list(home.iterdir()) == []


def _settle() -> None:
    """Give programs of a killed process the moment they need to notice; a disk's daemon stays."""
    deadline = time.monotonic() + 60
    while any("qemu-storage-daemon" not in each for each in leaks._descendants()):
        assert time.monotonic() < deadline, leaks._descendants()
        time.sleep(0.01)
