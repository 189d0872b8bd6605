"""What tests over all storage drivers share: a driver, a place it works in, homes, an archive.

Import the fixtures by name: each test that asks for `driver` runs once for every driver found.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import places
from pyvz.linux import mount
from pyvz.model.task import NoProgress
from pyvz.storage import base
from pyvz.storage.base import Capabilities, StorageDriver

SIZE = 512 << 20
SMALL = 320 << 20  # about the least that an xfs can have


@pytest.fixture(params=base.names())
def driver(request: pytest.FixtureRequest) -> StorageDriver:
    return base.load(request.param)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Driver -> a mounted file system of the kind that it cannot do without."""
    with places.needed(tmp_path_factory.mktemp("disks")) as found:
        yield found


@pytest.fixture
def place(driver: StorageDriver, tmp_path: Path, disks: dict[str, Path]) -> Iterator[Path]:
    """A private directory; whatever a failed test leaves mounted in it is taken away."""
    place = tmp_path
    if driver.name in disks:
        place = disks[driver.name] / tmp_path.name
        place.mkdir()
    yield place
    left = [entry.target for entry in mount.mounts(place.resolve())]
    mount.umount(place, recursive=True, lazy=True)
    assert left == []


@pytest.fixture
def home(place: Path) -> Path:
    return new_home(place, "home")


@pytest.fixture
def target(place: Path) -> Path:
    return place / "root" / "here"


@pytest.fixture
def caps(driver: StorageDriver, place: Path) -> Capabilities:
    return driver.capabilities(place)


@pytest.fixture
def archive(place: Path) -> Path:
    """A root file system with all that makes copying hard."""
    tree = place / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "sub").mkdir(mode=0o2755)
    (tree / "sub").chmod(0o2755)
    os.chown(tree / "sub", 1000, 1001)
    (tree / "su").write_text("#!/bin/sh\n")
    os.chown(tree / "su", 0, 42)
    (tree / "su").chmod(0o4750)
    (tree / "link").symlink_to("/etc/hostname")
    os.link(tree / "etc/hostname", tree / "etc/again")
    os.mkfifo(tree / "pipe", 0o622)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(tree / "su", "user.note", b"kept")
    with (tree / "big").open("wb") as file:
        file.write(os.urandom(3 << 20))
        file.truncate(20 << 20)
    name = "näme with\nnewline"
    (tree / name).write_text("odd")
    made = place / "root.tar"
    argv = ["tar", "-c", "--xattrs", "--acls", "--numeric-owner", "-S", "-C", tree, "-f", made, "."]
    subprocess.run(argv, check=True)
    return made


def new_home(place: Path, name: str) -> Path:
    made = place / name
    made.mkdir(mode=0o700)
    return made


def create(driver: StorageDriver, home: Path, source: Path | None = None) -> None:
    """Create a disk; with a size where the driver wants one."""
    size = SIZE if driver.capabilities(home.parent).quota else None
    driver.create(home, size=size, source=source, progress=NoProgress())


@contextlib.contextmanager
def mounted(
    driver: StorageDriver, home: Path, target: Path, *, readonly: bool = False
) -> Iterator[Path]:
    driver.mount(home, target, readonly=readonly)
    try:
        yield target
    finally:
        driver.umount(home, target)


def description(tree: Path) -> dict[str, object]:
    """Everything of a tree that a copy must keep."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(tree):
        for name in [*names, *files]:
            path = Path(directory, name)
            relative = os.fspath(path.relative_to(tree))
            if relative == "lost+found":
                continue
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode):
                content = status.st_rdev
            links = status.st_nlink if stat.S_ISREG(status.st_mode) else 0
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            found[relative] = (
                *(status.st_mode, status.st_uid, status.st_gid, int(status.st_mtime)),
                *(links, content, attributes),
            )
    return found


def fill(path: Path, size: int) -> None:
    """Write until there is no space; what is written is on the disk from time to time."""
    step = 16 << 20
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, step):
            data = memoryview(b"\1" * step)
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
