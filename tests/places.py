"""Places on which a storage driver works: a directory, or a file system made for it on a loop."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from pyvz.linux import mount

MKFS = {"btrfs": ["mkfs.btrfs", "-q"], "xfs": ["mkfs.xfs", "-q"], "ext4": ["mkfs.ext4", "-q"]}
PATIENCE = 60.0  # seconds that a dead mount of another test may last
FILE_SYSTEM = {"btrfs": "btrfs", "ploop": "xfs", "rawfile": "xfs"}  # what a driver is made for


@contextlib.contextmanager
def file_system(fstype: str, directory: Path, size: int) -> Iterator[Path]:
    """Mount a new file system of `size` bytes, on a sparse file, in the directory for a while."""
    image = directory.with_name(directory.name + ".img")
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        _format(fstype, image)
        subprocess.run(["mount", "-o", "loop", image, directory], check=True)
        try:
            yield directory
        finally:
            umount(directory)
    finally:
        image.unlink()
        directory.rmdir()


def umount(directory: Path) -> None:
    """Unmount, as soon as who ends has let go and no namespace of another test copies it."""
    mount.umount(directory, timeout=PATIENCE)


def _format(fstype: str, image: Path) -> None:
    """Make a file system; again when mkfs.btrfs, which asks every mount and loop device of the
    machine, met the dead one of a test elsewhere, or one that went while it looked.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        made = subprocess.run(
            [*MKFS[fstype], image], check=False, stderr=subprocess.PIPE, text=True
        )
        if made.returncode == 0:
            return
        assert time.monotonic() < deadline, made.stderr
        time.sleep(0.2)


@contextlib.contextmanager
def needed(directory: Path) -> Iterator[dict[str, Path]]:
    """Yield driver -> mounted file system for the drivers of FILE_SYSTEM, quota switched on."""
    with contextlib.ExitStack() as stack:
        found = {}
        for driver, fstype in FILE_SYSTEM.items():
            place = stack.enter_context(file_system(fstype, directory / driver, 4 << 30))
            if fstype == "btrfs":
                subprocess.run(["btrfs", "quota", "enable", place], check=True)
            found[driver] = place
        yield found


@contextlib.contextmanager
def full(name: str, directory: Path) -> Iterator[Path]:
    """Yield a directory with about 1 MiB of space for the driver."""
    if FILE_SYSTEM.get(name) != "btrfs":
        directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], check=True)
        try:
            yield directory
        finally:
            umount(directory)
        return
    with file_system(FILE_SYSTEM[name], directory, 128 << 20) as place:
        with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
            while file.write(os.urandom(1 << 18)):
                os.fsync(file.fileno())
        yield place
