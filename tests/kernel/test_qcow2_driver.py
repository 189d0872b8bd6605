"""The qcow2 driver beyond the conformance suite: snapshots, death of its daemon, bad images."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dying import in_child
from pyvz.errors import (
    AlreadyExists,
    AlreadyMounted,
    Busy,
    InvalidState,
    NotFound,
    PrivateMissing,
    StorageError,
    VZError,
)
from pyvz.image import qcow2 as format_
from pyvz.linux import mount
from pyvz.model.task import NoProgress
from pyvz.storage import daemontest, qcow2
from pyvz.storage.daemon import Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MIB = 1 << 20
SIZE = 512 * MIB
ONE, TWO = (f"{{{n}0000000-0000-4000-8000-00000000000{n}}}" for n in (1, 2))


@pytest.fixture
def driver() -> qcow2.Driver:
    return qcow2.Driver()


@pytest.fixture
def home(tmp_path: Path, driver: qcow2.Driver) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    driver.create(made, size=SIZE, source=None, progress=NoProgress())
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "root"


@contextlib.contextmanager
def mounted(driver: qcow2.Driver, home: Path, target: Path) -> Iterator[Path]:
    driver.mount(home, target)
    try:
        yield target
    finally:
        driver.umount(home, target)


def write(path: Path, byte: bytes, size: int = MIB) -> None:
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.write(byte * size)
        stream.flush()
        os.fsync(stream.fileno())


def image_of(home: Path) -> Path:
    return home / "qcow2/disk.qcow2"


def checked(home: Path) -> None:
    """QEMU itself finds nothing wrong, not even leaked space."""
    result = subprocess.run(["qemu-img", "check", "-f", "qcow2", image_of(home)], check=False)
    assert result.returncode == 0


class TestSnapshots:
    @pytest.mark.parametrize("running", [False, True])
    def test_there_and_back(
        self, driver: qcow2.Driver, home: Path, target: Path, tmp_path: Path, running: bool
    ) -> None:
        seen = tmp_path / "seen"
        with mounted(driver, home, target):
            write(target / "file", b"1")
            if running:
                driver.snapshot(home, ONE)
        if not running:
            driver.snapshot(home, ONE)
        with pytest.raises(AlreadyExists):
            driver.snapshot(home, ONE)
        with mounted(driver, home, target):
            write(target / "file", b"2")
            driver.snapshot(home, TWO)
            write(target / "file", b"3")
            with pytest.raises(AlreadyMounted):
                driver.switch(home, ONE)
            driver.mount_snapshot(home, ONE, seen)
            assert (seen / "file").read_bytes() == b"1" * MIB
            with pytest.raises(Busy):
                driver.delete_snapshot(home, ONE)
            driver.umount_snapshot(home, ONE, seen)
            driver.umount_snapshot(home, ONE, seen)
            driver.mount_snapshot(home, TWO, seen)
            assert (seen / "file").read_bytes() == b"2" * MIB
            write(target / "file", b"4")
            assert (seen / "file").read_bytes() == b"2" * MIB
            driver.umount_snapshot(home, TWO, seen)
        driver.switch(home, ONE)
        with mounted(driver, home, target):
            assert (target / "file").read_bytes() == b"1" * MIB
            driver.delete_snapshot(home, ONE)
            assert (target / "file").read_bytes() == b"1" * MIB
        driver.switch(home, TWO)
        driver.delete_snapshot(home, TWO)
        with mounted(driver, home, target):
            assert (target / "file").read_bytes() == b"2" * MIB
        for act in (driver.switch, driver.delete_snapshot, driver.changed):
            with pytest.raises(NotFound):
                act(home, ONE)
        checked(home)
        driver.remove(home, NoProgress())
        assert not list(home.iterdir())

    def test_switch_keeps_the_size(self, driver: qcow2.Driver, home: Path, target: Path) -> None:
        driver.snapshot(home, ONE)
        with mounted(driver, home, target):
            driver.resize(home, 2 * SIZE)
        driver.switch(home, ONE)
        with mounted(driver, home, target):
            assert driver.usage(home).total > 1.6 * SIZE
        with pytest.raises(InvalidState):
            driver.resize(home, SIZE)
        checked(home)

    def test_changed_is_what_differs(
        self, driver: qcow2.Driver, home: Path, target: Path, tmp_path: Path
    ) -> None:
        with mounted(driver, home, target):
            write(target / "file", b"1", 4 * MIB)
            driver.snapshot(home, ONE)
            write(target / "file", b"2")
            driver.snapshot(home, TWO)
            told = driver.changed(home, ONE, TWO)
            write(target / "more", b"3")
            later = driver.changed(home, ONE)
        disks = []
        for guid in (ONE, TWO):
            raw = tmp_path / guid
            argv = ["qemu-img", "convert", "-O", "raw", "-l", f"snapshot.name={guid}"]
            subprocess.run([*argv, image_of(home), raw], check=True)
            disks.append(raw)
        with disks[0].open("rb") as one, disks[1].open("rb") as two:
            for at in range(0, SIZE, MIB):
                first, second = one.read(MIB), two.read(MIB)
                for spot in range(at, at + MIB, 65536) if first != second else ():
                    places = slice(spot - at, spot - at + 65536)
                    if first[places] != second[places]:
                        assert any(start <= spot < start + length for start, length in told), spot
        assert MIB <= sum(length for _, length in told) < 32 * MIB
        assert sum(length for _, length in later) >= 2 * MIB
        for raw in disks:
            raw.unlink()

    def test_clone_has_them_and_is_independent(
        self, driver: qcow2.Driver, home: Path, target: Path, tmp_path: Path
    ) -> None:
        driver.snapshot(home, ONE)
        other = tmp_path / "other"
        other.mkdir()
        driver.clone(home, other, NoProgress())
        with mounted(driver, home, target):
            write(target / "file", b"1")
        driver.switch(other, ONE)
        checked(other)
        driver.remove(other, NoProgress())


class TestDiscard:
    def test_compact_gives_space_back(self, driver: qcow2.Driver, home: Path, target: Path) -> None:
        with mounted(driver, home, target):
            write(target / "file", b"1", 64 * MIB)
            (target / "file").unlink()
            assert driver.compact(home) > 48 * MIB
        assert driver.compact(home) < 16 * MIB
        checked(home)


class TestDeath:
    def test_daemon_goes_on_without_us(
        self, driver: qcow2.Driver, home: Path, target: Path
    ) -> None:
        assert in_child(lambda: driver.mount(home, target)) == 0
        write(target / "file", b"1")
        driver.mount(home, target)  # found again
        driver.snapshot(home, ONE)
        assert driver.failed(home) == ""
        driver.umount(home, target)
        assert not (home / "qcow2/daemon").exists()

    def test_daemon_killed_under_load(self, driver: qcow2.Driver, home: Path, target: Path) -> None:
        """An error for whoever writes, nothing that was synced is lost, the next mount works."""
        driver.mount(home, target)
        written = 0
        pid = Daemon(home / "qcow2/daemon").pid
        assert pid is not None
        failed = None
        try:
            for number in range(2000):
                write(target / f"file{number}", b"%d" % (number % 10), 65536)
                written += 1
                if number == 50:
                    os.kill(pid, signal.SIGKILL)
        except OSError as error:
            failed = error.errno
        assert failed in {errno.EIO, errno.EROFS, errno.EUCLEAN}
        assert written >= 50
        deadline = time.monotonic() + 120
        while not driver.failed(home) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "died" in driver.failed(home)
        with pytest.raises(StorageError, match="died"):
            driver.mount(home, target)
        driver.umount(home, target)
        assert driver.failed(home) == ""
        with mounted(driver, home, target):
            for number in range(written):
                assert (target / f"file{number}").read_bytes() == b"%d" % (number % 10) * 65536
        checked(home)

    def test_unclean_is_made_whole(self, driver: qcow2.Driver, home: Path, target: Path) -> None:
        """Everything dies at once, as in a power cut: the copy is taken in the middle."""
        with mounted(driver, home, target):
            write(target / "file", b"1")
            raw = image_of(home).read_bytes()
        image_of(home).write_bytes(raw)
        (home / "qcow2/open").touch()
        with mounted(driver, home, target):
            assert (target / "file").read_bytes() == b"1" * MIB
        assert not (home / "qcow2/open").exists()


class TestBadImages:
    @pytest.mark.parametrize(
        "make",
        ["backing", "data file", "device", "link", "cut", "garbage", "encrypted", "old", "fifo"],
    )
    def test_is_refused_and_nothing_is_opened(
        self, driver: qcow2.Driver, home: Path, target: Path, tmp_path: Path, make: str
    ) -> None:
        image = image_of(home)
        good = tmp_path / "good"
        image.rename(good)
        secret = tmp_path / "secret"
        secret.write_bytes(b"secret" * 200_000)
        create = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if make == "backing":
            subprocess.run([*create, "-b", secret, "-F", "raw", image], check=True)
        elif make == "data file":
            options = f"data_file={tmp_path}/data,data_file_raw=on"
            subprocess.run([*create, "-o", options, image, "64M"], check=True)
        elif make == "device":
            os.mknod(image, 0o600 | 0o060000, os.makedev(7, 0))
        elif make == "link":
            image.symlink_to(good)
        elif make == "cut":
            image.write_bytes(good.read_bytes()[: 3 * 65536])
        elif make == "garbage":
            image.write_bytes(os.urandom(1 << 16))
        elif make == "encrypted":
            image.write_bytes(good.read_bytes())
            with image.open("r+b") as stream:
                stream.seek(32)
                stream.write((1).to_bytes(4, "big"))
        elif make == "old":
            subprocess.run([*create, "-o", "compat=0.10", image, "64M"], check=True)
        else:
            os.mkfifo(image)
        with pytest.raises(VZError) as caught:
            driver.mount(home, target)
        assert isinstance(caught.value, StorageError | PrivateMissing)
        assert not mount.is_mount_point(target)
        assert not (home / "qcow2/daemon").exists()
        image.unlink(missing_ok=True)

    def test_two_at_once_are_refused_by_qemu_too(
        self, driver: qcow2.Driver, home: Path, target: Path
    ) -> None:
        with mounted(driver, home, target):
            argv = ["qemu-io", "-f", "qcow2", "-c", "write 0 4k", image_of(home)]
            assert subprocess.run(argv, check=False, capture_output=True).returncode != 0

    def test_header_of_nonsense(self, tmp_path: Path, home: Path) -> None:
        """Every byte of the header may be anything: an error of ours, never another one."""
        raw = image_of(home).read_bytes()[:65536]
        path = tmp_path / "fuzzed"
        for at in range(112):
            for value in (0x00, 0x7F, 0xFF):
                path.write_bytes(raw[:at] + bytes([value]) + raw[at + 1 :])
                with contextlib.suppress(StorageError), format_.image(path) as found:
                    found.changed(found.now, found.now)
                    found.read(found.now, 0, 4096)


def test_direct_io_is_tried_once(tmp_path: Path) -> None:
    answer = daemontest.direct_io(tmp_path)
    assert daemontest.direct_io(tmp_path) == answer
    scratch = tmp_path / "scratch"
    assert daemontest.writes_come_out(scratch, direct=answer)
    daemontest.forget(tmp_path)
    scratch.rmdir() if scratch.is_dir() and not list(scratch.iterdir()) else None
