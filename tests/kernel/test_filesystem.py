"""File systems in images for real: made, grown, frozen, trimmed, checked."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvz.errors import MountError, NoSpace, StorageError, Timeout, Unsupported
from pyvz.linux import filesystem, loopdevice
from pyvz.linux.loopdevice import Loop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

MIB = 1 << 20
SIZE = 320 * MIB


@pytest.fixture(params=filesystem.TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(2 * SIZE)
    with loopdevice.attached(path, 0, SIZE) as loop:
        filesystem.make(loop.device, kind)
    return path


@contextmanager
def mounted(image: Path, kind: str, size: int = SIZE) -> Iterator[tuple[Loop, int, Path]]:
    """The device, the mount, and a path to it."""
    with loopdevice.attached(image, 0, size) as loop:
        fd = filesystem.mount_detached(loop.device, kind)
        try:
            yield loop, fd, Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    backing = loopdevice.backing_of(loop.minor)
    if backing is not None:
        loopdevice.wait_gone(loop.minor, backing)


def test_its_kind_is_known(image: Path, kind: str, tmp_path: Path) -> None:
    assert filesystem.kind_at(image) == kind
    (tmp_path / "empty").write_bytes(bytes(4096))
    assert filesystem.kind_at(tmp_path / "empty") is None
    with pytest.raises(StorageError):
        filesystem.space_at(tmp_path / "empty")


def test_space_unmounted_is_about_that_of_statvfs(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, _, path):
        (path / "file").write_bytes(bytes(20 * MIB))
        shown = filesystem.space_of(path)
    read = filesystem.space_at(image)
    assert abs(read.total - shown.total) < 32 * MIB
    assert abs(read.used - shown.used) < 32 * MIB
    assert 0 < read.inodes_used <= read.inodes
    assert abs(read.spanned - SIZE) <= MIB


def test_mounted_nowhere_and_without_devices(image: Path, kind: str) -> None:
    with mounted(image, kind) as (loop, _, path):
        (path / "file").write_text("x")
        assert os.fspath(loop.device) not in Path("/proc/self/mounts").read_text()
        os.mknod(path / "null", 0o20666, os.makedev(1, 3))
        with pytest.raises(PermissionError):
            (path / "null").open("rb")


def test_grows(image: Path, kind: str) -> None:
    with mounted(image, kind) as (loop, fd, path):
        (path / "file").write_text("kept")
        loopdevice.resize(loop.device, 2 * SIZE)
        if kind == "ext4" and not filesystem.can_grow_ext4_online():
            with pytest.raises(Unsupported, match="while it is mounted"):
                filesystem.grow_online(fd, kind, 2 * SIZE)
        else:
            filesystem.grow_online(fd, kind, 2 * SIZE)
            filesystem.grow_online(fd, kind, 2 * SIZE)
            assert filesystem.space_of(path).total > 1.5 * SIZE
    with loopdevice.attached(image, 0, 2 * SIZE) as loop:
        filesystem.resize_offline(loop.device, kind, 2 * SIZE)
        assert filesystem.check(loop.device, kind, repair=False)
    with mounted(image, kind, 2 * SIZE) as (_, _, path):
        assert filesystem.space_of(path).total > 1.5 * SIZE
        assert (path / "file").read_text() == "kept"


def test_shrinks_or_refuses(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, _, path):
        (path / "file").write_bytes(os.urandom(64 * MIB))
    with loopdevice.attached(image, 0, SIZE) as loop:
        if kind == "xfs":
            with pytest.raises(Unsupported):
                filesystem.minimum(loop.device, kind)
            return
        assert 64 * MIB < filesystem.minimum(loop.device, kind) < SIZE
        with pytest.raises(NoSpace):
            filesystem.resize_offline(loop.device, kind, 32 * MIB)
        filesystem.resize_offline(loop.device, kind, SIZE // 2)
        assert filesystem.check(loop.device, kind, repair=False)
    assert abs(filesystem.space_at(image).spanned - SIZE // 2) <= MIB


def test_frozen_stands_still_and_is_thawed(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, fd, path):
        written = threading.Event()

        def write() -> None:
            (path / "file").write_text("x")
            written.set()

        with filesystem.frozen(fd):
            writer = threading.Thread(target=write)
            writer.start()
            assert not written.wait(0.2)
        assert written.wait(60)
        writer.join()
        assert not filesystem.thaw(fd)
        with pytest.raises(RuntimeError), filesystem.frozen(fd):
            raise RuntimeError
        assert not filesystem.thaw(fd)


def test_the_watchdog_thaws(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, fd, path):

        def too_long() -> None:
            with filesystem.frozen(fd, timeout=0.1):
                time.sleep(0.3)
                (path / "file").write_text("x")

        with pytest.raises(Timeout):
            too_long()
        assert not filesystem.thaw(fd)


@pytest.mark.parametrize("kind", ["xfs"])
def test_one_that_dies_while_frozen_is_thawed(image: Path, kind: str) -> None:
    """Else its device would stay for ever: the file system outlives its last mount."""
    with mounted(image, kind) as (_, fd, path):
        goingdown = os.open(path, os.O_RDONLY)
        with filesystem.frozen(fd):
            # XFS_IOC_GOINGDOWN, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH: as when the device is gone.
            fcntl.ioctl(goingdown, 0x8004587D, struct.pack("=I", 2))
        os.close(goingdown)
        with pytest.raises(OSError, match="Input/output"):
            (path / "file").write_text("x")
    # `mounted` has waited until the device is gone.


def test_trim_gives_space_back(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, fd, path):
        (path / "file").write_bytes(os.urandom(100 * MIB))
        filesystem.sync(fd)
        full = image.stat().st_blocks * 512
        (path / "file").unlink()
        filesystem.sync(fd)
        filesystem.trim(fd)
        deadline = time.monotonic() + 60  # the kernel goes on with it after the call
        while image.stat().st_blocks * 512 >= full - 90 * MIB:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_damage_is_found(image: Path, kind: str) -> None:
    with mounted(image, kind) as (_, _, path):
        (path / "file").write_text("x")
    with image.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(MIB))
    with loopdevice.attached(image, 0, SIZE) as loop:
        assert not filesystem.check(loop.device, kind, repair=False)


def test_what_is_no_file_system(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    with loopdevice.attached(path, 0, SIZE) as loop:
        with pytest.raises(MountError):
            filesystem.mount_detached(loop.device, "xfs")
        with pytest.raises(Unsupported):
            filesystem.make(loop.device, "ntfs")
