"""Loop devices for real: parts of files, direct I/O, sizes, and that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dying import in_child
from leaks import command_line
from pyvz.errors import Busy, StorageError
from pyvz.linux import filesystem, loopdevice, mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    yield path
    for loop in loopdevice.find(path):
        loopdevice.detach(loop.device)


def gone(path: Path) -> bool:
    deadline = time.monotonic() + 60
    while loopdevice.find(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return loopdevice.find(path) == []


def test_shows_a_part_of_the_file(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(b"here it begins")
    with loopdevice.attached(image, 4 * MIB, 8 * MIB) as loop:
        assert loop.device.read_bytes()[:14] == b"here it begins"
        assert len(loop.device.read_bytes()) == 8 * MIB
        assert loopdevice.find(image) == [loop]
        assert loop.device in loopdevice.below(image.parent)
        status = loop.device.stat()
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (loop.major, loop.minor)
    assert gone(image)


def test_direct_io_is_what_the_kernel_says(image: Path) -> None:
    with loopdevice.attached(image, 0, MIB) as loop:
        flag = Path(f"/sys/block/{loop.device.name}/loop/dio").read_text().strip()
        assert loop.direct_io == (flag == "1")


def test_readonly(image: Path) -> None:
    with loopdevice.attached(image, 0, MIB, readonly=True) as loop:
        assert Path(f"/sys/block/{loop.device.name}/ro").read_text().strip() == "1"


def test_attach_stays_until_detach(image: Path) -> None:
    loop = loopdevice.attach(image, 0, 4 * MIB)
    assert loopdevice.find(image) == [loop]
    loopdevice.resize(loop.device, 8 * MIB)
    assert len(loop.device.read_bytes()) == 8 * MIB
    loopdevice.detach(loop.device)
    loopdevice.detach(loop.device)
    assert loopdevice.find(image) == []


def test_busy_names_who_holds_it(image: Path) -> None:
    loop = loopdevice.attach(image, 0, 4 * MIB)
    fd = os.open(loop.device, os.O_RDONLY)
    try:
        with pytest.raises(Busy) as caught:
            loopdevice.detach(loop.device, timeout=0.1)
        assert f"(pid {os.getpid()})" in caught.value.details
    finally:
        os.close(fd)
    assert gone(image)


def test_a_mount_of_a_stranger_is_named(image: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    target = base / "mnt"
    target.mkdir(parents=True)
    mount.bind(base, base)
    with loopdevice.attached(image, 0, 64 * MIB) as loop:
        filesystem.make(loop.device, "ext4")
        mounted = filesystem.mount_detached(loop.device, "ext4")
        filesystem.place(mounted, target)
        os.close(mounted)
    backing = loopdevice.backing_of(loop.minor)
    assert backing is not None
    # Only this place is private: a copy of the others would hold the disks of other tests.
    keep = f"mount --make-private {base} && exec sleep 600"
    words = ["unshare", "--mount", "--propagation=slave", "sh", "-c", keep]
    stranger = subprocess.Popen(words)
    try:
        deadline = time.monotonic() + 60
        while command_line(stranger.pid)[:9] != b"sleep\x00600":
            assert time.monotonic() < deadline
        mount.umount(target)
        with pytest.raises(Busy) as caught:
            loopdevice.wait_gone(loop.minor, backing, 0.1)
        assert f"mounted at {target}" in caught.value.details
    finally:
        stranger.kill()
        stranger.wait()
        mount.umount(base, recursive=True, timeout=60)
    assert gone(image)


@pytest.mark.parametrize("part", [(0, 65 * MIB), (512, 64 * MIB), (0, 0), (100, MIB), (0, 100)])
def test_parts_that_are_not_there(image: Path, part: tuple[int, int]) -> None:
    with pytest.raises(StorageError):
        loopdevice.attach(image, *part)
    assert loopdevice.find(image) == []


def test_no_device_and_no_link(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    with pytest.raises(OSError, match="symbolic links"):
        loopdevice.attach(link, 0, MIB)
    with pytest.raises(StorageError):
        loopdevice.attach(Path("/dev/zero"), 0, MIB)
    with pytest.raises(StorageError):
        loopdevice.detach(Path("/dev/zero"))


def test_death_of_the_holder_leaves_none(image: Path) -> None:
    def work() -> None:
        with loopdevice.attached(image, 0, MIB):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert gone(image)
