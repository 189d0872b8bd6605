"""The ploop driver beyond the conformance suite: golden images, snapshots, disks, faults."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import faults
import places
from dying import in_child
from pyvz.errors import AlreadyMounted, BadValue, Busy, StorageError, Unsupported, VZError
from pyvz.image import gpt, identity
from pyvz.image.file import opened
from pyvz.linux import filesystem, loopdevice, mount
from pyvz.model.task import NoProgress
from pyvz.operations import pool
from pyvz.storage import base, embedded, golden, newfilesystem, ploop, ploopdisk
from pyvz.store.paths import Paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MIB = 1 << 20
SIZE = 512 * MIB
GUID = "{11111111-2222-4333-8444-555555555555}"
OTHER = "{11111111-2222-4333-8444-666666666666}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that shares blocks."""
    with places.file_system("xfs", tmp_path_factory.mktemp("pool") / "xfs", 8 << 30) as place:
        yield place


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Path:
    made = shared / tmp_path.name
    made.mkdir()
    return made


@pytest.fixture
def home(place: Path) -> Path:
    made = place / "home"
    made.mkdir()
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def driver() -> ploop.Driver:
    return ploop.Driver()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_text("from the template\n")
    made = tmp_path / "tiny.tar"
    subprocess.run(["tar", "-C", tree, "-cf", made, "."], check=True)
    return made


def create(driver: ploop.Driver, home: Path, **options: object) -> None:
    given: dict[str, object] = {"size": SIZE, "source": None, "progress": NoProgress()}
    driver.create(home, **(given | options))  # type: ignore[arg-type]


@contextlib.contextmanager
def mounted(driver: ploop.Driver, home: Path, target: Path, **options: str) -> Iterator[Path]:
    driver.mount(home, target, **options)
    try:
        yield target
    finally:
        driver.umount(home, target, **options)


def loops(home: Path) -> list[Path]:
    return loopdevice.below(home.parent.resolve())


class TestLayout:
    """What OpenVZ has on disk."""

    def test_names(self, driver: ploop.Driver, home: Path) -> None:
        create(driver, home)
        assert sorted(os.listdir(home)) == [".ve.layout", "root.hdd", "templates"]
        assert (home / ".ve.layout").readlink() == Path("5")
        assert (home / "templates").readlink() == Path("root.hdd/templates")
        names = sorted(os.listdir(home / "root.hdd"))
        assert names == ["DiskDescriptor.xml", "root.hds", "templates"]

    @pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img")
    def test_other_programs_read_it(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_bytes(os.urandom(5 * MIB))
        argv = ["qemu-img", "check", "-f", "parallels", home / "root.hdd/root.hds"]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_in_use_says_whether_it_was_closed(
        self, driver: ploop.Driver, home: Path, target: Path
    ) -> None:
        create(driver, home)
        image = home / "root.hdd/root.hds"
        assert not identity.in_use(image)
        with mounted(driver, home, target):
            assert identity.in_use(image)
        assert not identity.in_use(image)

    @pytest.mark.parametrize("kind", filesystem.TYPES)
    def test_unclean_is_made_whole_at_the_next_mount(
        self, driver: ploop.Driver, home: Path, target: Path, kind: str
    ) -> None:
        create(driver, home, made=base.NewFileSystem(kind))
        image, copy = home / "root.hdd/root.hds", home / "root.hdd/copy"
        with mounted(driver, home, target):
            (target / "file").write_text("flushed")
            subprocess.run(["sync", "-f", target], check=True)
            subprocess.run(["cp", "--reflink=always", image, copy], check=True)  # a power cut
        copy.rename(image)
        assert identity.in_use(image)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "flushed"
        assert not identity.in_use(image)
        assert driver.check(home).clean

    def test_a_partition_is_found_and_grows(
        self, driver: ploop.Driver, home: Path, target: Path
    ) -> None:
        create(driver, home, made=base.NewFileSystem("ext4"))
        image = home / "root.hdd/root.hds"
        with opened(image, write=True) as fd:
            part = gpt.write(fd, identity.data_offset(image), SIZE)
        offset = identity.data_offset(image) + part.offset
        with loopdevice.attached(image, offset, part.size) as loop:
            filesystem.make(loop.device, "ext4")
        ploopdisk.wait_detached(image)
        with mounted(driver, home, target):
            (target / "file").write_text("kept")
        driver.resize(home, 2 * SIZE)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "kept"
            assert driver.usage(home).total > 1.8 * SIZE


class TestGolden:
    def test_made_once_and_again_when_the_archive_changes(
        self, driver: ploop.Driver, place: Path, archive: Path, target: Path
    ) -> None:
        homes = [place / name for name in ("a", "b", "c")]
        for home in homes:
            home.mkdir()
        size = 1 << 30
        create(driver, homes[0], source=archive, size=size)
        (made,) = (place / ".golden").glob("*.ploop")
        first = (made / "root.hds").stat().st_ino
        create(driver, homes[1], source=archive, size=size + 300 * MIB)
        assert (made / "root.hds").stat().st_ino == first
        (archive.parent / "tree/hello").write_text("another\n")
        argv = ["tar", "-C", archive.parent / "tree", "-cf", archive, "."]
        subprocess.run(argv, check=True)
        create(driver, homes[2], source=archive, size=size)
        assert (made / "root.hds").stat().st_ino != first
        for home, text in zip(
            homes, ("from the template", "from the template", "another"), strict=True
        ):
            with mounted(driver, home, target):
                assert (target / "hello").read_text() == text + "\n"
        assert driver.usage(homes[1]).total > driver.usage(homes[0]).total + 250 * MIB

    def test_several_at_once_wait_for_one(
        self, driver: ploop.Driver, place: Path, archive: Path
    ) -> None:
        homes = [place / f"home{number}" for number in range(4)]
        for home in homes:
            home.mkdir()
        threads = [
            threading.Thread(target=create, args=(driver, home), kwargs={"source": archive})
            for home in homes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert all(driver.present(home) for home in homes)
        assert len(list((place / ".golden").glob("*.ploop"))) == 1
        assert not list((place / ".golden").glob("*.new"))

    def test_killed_builder_leaves_nothing_mounted(self, place: Path, archive: Path) -> None:
        home = place / "home"
        home.mkdir()

        class Deadly(NoProgress):
            def stage(self, text: str) -> None:
                if text == "Writing to disk":  # the image is attached and mounted
                    os.kill(os.getpid(), signal.SIGKILL)

        kind = newfilesystem.default()

        def work() -> None:
            with golden.image(home, archive, SIZE, kind, Deadly()):
                pass

        assert in_child(work) == -signal.SIGKILL
        assert not [x for x in mount.mounts() if Path(x.target).is_relative_to(place)]
        with golden.image(home, archive, SIZE, kind, NoProgress()) as image:
            assert not identity.in_use(image)
        assert loops(home) == []


class TestSizes:
    def test_refusals(self, driver: ploop.Driver, home: Path) -> None:
        with pytest.raises(BadValue):
            create(driver, home, size=100 * MIB, made=base.NewFileSystem("xfs"))
        with pytest.raises(Unsupported):
            create(driver, home, made=base.NewFileSystem("ntfs"))
        assert os.listdir(home) == []

    def test_ext4_shrinks_and_xfs_does_not(
        self, driver: ploop.Driver, home: Path, target: Path
    ) -> None:
        create(driver, home, made=base.NewFileSystem("ext4"))
        driver.resize(home, SIZE // 2)
        with mounted(driver, home, target):
            assert driver.usage(home).total < SIZE // 2
        create(driver, home, made=base.NewFileSystem("xfs"), disk="hdd1.hdd")
        with pytest.raises(Unsupported):
            driver.resize(home, SIZE - 100 * MIB, disk="hdd1.hdd")

    def test_compact(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        for again in (False, True):
            with mounted(driver, home, target):
                (target / "file").write_bytes(os.urandom(50 * MIB))
                subprocess.run(["sync", "-f", target], check=True)
                (target / "file").unlink()
                if again:
                    assert driver.compact(home) > 40 * MIB
            if not again:
                assert driver.compact(home) > 40 * MIB


class TestSnapshots:
    def test_there_and_back(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        with mounted(driver, home, target):
            (target / "file").write_text("old")
            driver.snapshot(home, GUID)
            (target / "file").write_text("new")
            with pytest.raises(AlreadyMounted):
                driver.switch(home, GUID)
        driver.snapshot(home, OTHER)
        seen = target.with_name("seen")
        driver.mount_snapshot(home, GUID, seen)
        try:
            assert (seen / "file").read_text() == "old"
            with pytest.raises(Busy):
                driver.delete_snapshot(home, GUID)
        finally:
            driver.umount_snapshot(home, GUID, seen)
        driver.switch(home, GUID)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "old"
        driver.delete_snapshot(home, GUID)
        driver.switch(home, OTHER)
        with mounted(driver, home, target):
            assert (target / "file").read_text() == "new"
        driver.delete_snapshot(home, OTHER)
        assert len(list((home / "root.hdd").glob("root.hds*"))) == 1
        assert loops(home) == []

    def test_switch_keeps_the_size(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        driver.snapshot(home, GUID)
        driver.resize(home, 2 * SIZE)
        driver.switch(home, GUID)
        with mounted(driver, home, target):
            assert driver.usage(home).total > 1.7 * SIZE

    def test_clone_takes_snapshots_and_disks_along(
        self, driver: ploop.Driver, place: Path, home: Path
    ) -> None:
        create(driver, home)
        create(driver, home, disk="hdd1.hdd")
        driver.snapshot(home, GUID)
        copy = place / "copy"
        copy.mkdir()
        driver.clone(home, copy, NoProgress())
        assert driver.disks(copy) == ["root.hdd", "hdd1.hdd"]
        driver.switch(copy, GUID)
        driver.remove(copy, NoProgress())
        assert os.listdir(copy) == []


class TestDisks:
    def test_several(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        create(driver, home, disk="hdd1.hdd")
        second = target.with_name("second")
        with mounted(driver, home, target), mounted(driver, home, second, disk="hdd1.hdd"):
            assert len(driver.devices(home)) == 2
            assert len(driver.devices(home, disk="hdd1.hdd")) == 1
            with pytest.raises(AlreadyMounted):
                driver.remove_disk(home, "hdd1.hdd")
        driver.remove_disk(home, "hdd1.hdd")
        assert driver.disks(home) == ["root.hdd"]
        with pytest.raises(BadValue):
            driver.mount(home, target, disk="../home/root.hdd")

    def test_two_mounts_of_one_image(self, driver: ploop.Driver, home: Path, target: Path) -> None:
        create(driver, home)
        with mounted(driver, home, target), pytest.raises(AlreadyMounted, match="mounted at"):
            driver.mount(home, target.with_name("other"))


class TestBadImages:
    @pytest.mark.parametrize("how", ["truncated", "link", "device", "garbage", "no file system"])
    def test_is_refused_and_nothing_is_attached(
        self, driver: ploop.Driver, home: Path, target: Path, how: str
    ) -> None:
        create(driver, home)
        image = home / "root.hdd/root.hds"
        if how == "truncated":
            os.truncate(image, 100 * MIB)
        elif how == "garbage":
            image.write_bytes(os.urandom(MIB))
        elif how == "no file system":
            with image.open("r+b") as file:
                file.seek(4 * MIB)
                file.write(bytes(8 * MIB))
        else:
            image.rename(image.with_name("real"))
            if how == "link":
                image.symlink_to("real")
            else:
                os.mknod(image, 0o60600, os.makedev(7, 0))
        with pytest.raises((VZError, OSError)):
            driver.mount(home, target)
        assert loops(home) == []
        assert not mount.is_mount_point(target)


Verb = Callable[[ploop.Driver, Path, Path], object]


def _mount_cycle(driver: ploop.Driver, home: Path, target: Path) -> None:
    with mounted(driver, home, target):
        pass


SWEEP: dict[str, Verb] = {
    "mount": _mount_cycle,
    "grow": lambda driver, home, _target: driver.resize(home, SIZE + 64 * MIB),
    "snapshot": lambda driver, home, _target: driver.snapshot(home, OTHER),
    "switch": lambda driver, home, _target: driver.switch(home, GUID),
    "delete": lambda driver, home, _target: driver.delete_snapshot(home, GUID),
}


@pytest.mark.parametrize("verb", SWEEP)
def test_death_at_every_step(
    driver: ploop.Driver, place: Path, home: Path, target: Path, verb: str
) -> None:
    """Whole and mountable afterwards, with one of the two legal contents; nothing is attached."""
    create(driver, home)
    with mounted(driver, home, target):
        (target / "file").write_text("old")
        driver.snapshot(home, GUID)
        (target / "file").write_text("new")
    for number in range(1, 120):
        trial = place / f"trial{number}"
        trial.mkdir()
        driver.clone(home, trial, NoProgress())
        died = faults.killed_at(number, lambda at=trial: SWEEP[verb](driver, at, target), place)
        pool.thaw_roots(target.parent)  # as vzd does when it starts
        mount.umount(target)
        ploopdisk.wait_detached(trial / "root.hdd/root.hds")
        with mounted(driver, trial, target):
            assert (target / "file").read_text() in {"new", "old" if verb == "switch" else "new"}
        assert driver.check(trial).clean
        driver.resize(trial, SIZE + 64 * MIB)
        images = {image.file for image in ploopdisk.Disk(trial / "root.hdd").descriptor().images}
        found = {path.name for path in (trial / "root.hdd").glob("*root.hds*")}
        assert found == images
        driver.remove(trial, NoProgress())
        assert os.listdir(trial) == []
        if not died:
            break
    assert number > 2


class TestEmbeddedPool:
    """The node's own pool; it is unmounted by the fixture of the root."""

    def test_is_made_mounted_again_and_shares_blocks(self, short_root: Path) -> None:
        paths = Paths(short_root)
        (short_root / "vz").mkdir()
        assert not embedded.open_made(paths)
        place = embedded.ensure(paths)
        assert golden.can_share(place)
        (place / "file").write_text("kept")
        assert embedded.ensure(paths) == place
        embedded.close(paths)
        assert not mount.is_mount_point(place)
        assert embedded.open_made(paths)
        assert (place / "file").read_text() == "kept"

    def test_grows_when_there_is_less_room_than_wanted(self, short_root: Path) -> None:
        paths = Paths(short_root)
        place = embedded.ensure(paths)
        embedded.close(paths)
        # As if the node's disk had been nearly full when it was made.
        image = embedded.file_of(paths)
        image.unlink()
        with image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run(["mkfs.xfs", "-q", image], check=True)
        embedded.ensure(paths, room=2 << 30)
        assert filesystem.space_of(place).total > 2 << 30

    def test_a_killed_maker(self, short_root: Path) -> None:
        paths = Paths(short_root)
        (short_root / "vz").mkdir()
        for number in range(1, 12):
            died = faults.killed_at(number, lambda: embedded.ensure(paths), short_root)
            embedded.ensure(paths)
            embedded.close(paths)
            embedded.file_of(paths).unlink()
            if not died:
                return


def test_what_is_attached_is_in_use(driver: ploop.Driver, home: Path) -> None:
    create(driver, home)
    image = home / "root.hdd/root.hds"
    with loopdevice.attached(image, 4 * MIB, 4 * MIB), pytest.raises((Busy, StorageError)):
        base.check_unmounted(home)
