"""The node's own pool: an xfs with reflinks in a sparse file, where /vz cannot share blocks.

    <vz>/.pool.xfs          the file: as large as the node's disk can hold, grown on demand
    <vz>/.pool.xfs.new      being made
    <vz>/.pool.lock         held while it is made, grown or mounted
    <vz>/pool/default       where it is mounted, through a loop device with direct I/O

It is made when the first image is, mounted again when vzd starts, and stays mounted.  Its device
clears itself when it is unmounted.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvz.errors import MountError, NoSpace
from pyvz.linux import file, filesystem, loopdevice, mount, run
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

NAME: Final = "default"
MINIMUM: Final = 2 << 30
_SHARE: Final = 0.9  # of what the node's disk has free: the rest is for others
_LOG_SIZE: Final = "64m"  # mkfs writes it whole; the least for a pool of any size
_LOCK_TIMEOUT: Final = 60.0
_ALIGN: Final = 1 << 20


def file_of(paths: Paths) -> Path:
    """Return the file that the pool is in."""
    return paths.vz / ".pool.xfs"


def directory(paths: Paths) -> Path:
    """Return the directory of the homes in the pool."""
    return paths.vz / "pool" / NAME


def ensure(paths: Paths, room: int = MINIMUM) -> Path:
    """Make, grow and mount the pool as needed; return the directory of its homes.

    room: bytes that it should have free, as far as the node's disk has them.
    Raises NoSpace (the node has less than MINIMUM), CommandFailed, MountError, StorageError.
    """
    with _locked(paths):
        if not file_of(paths).exists():
            _make(paths)
        _mount(paths)
        _grow(paths, room)
    return directory(paths)


def open_made(paths: Paths) -> bool:
    """Mount the pool if this node has one; return whether it has.  Raises as `ensure`."""
    if not file_of(paths).exists():
        return False
    with _locked(paths):
        _mount(paths)
    return True


def close(paths: Paths) -> None:
    """Unmount the pool and wait until its device is gone; raises Busy."""
    if not file_of(paths).exists():
        return
    with _locked(paths):
        mount.umount(directory(paths))
        for loop in loopdevice.find(file_of(paths)):
            backing = loopdevice.backing_of(loop.minor)
            if backing is not None:
                loopdevice.wait_gone(loop.minor, backing)


@contextlib.contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    paths.vz.mkdir(mode=0o755, parents=True, exist_ok=True)
    with file.flock(paths.vz / ".pool.lock", timeout=_LOCK_TIMEOUT):
        yield


def _make(paths: Paths) -> None:
    """Make the file system beside its place, and give it its name when it is whole."""
    size = _most(paths, 0)
    if size < MINIMUM:
        raise NoSpace(
            f"There is not enough space in {paths.vz} for a pool of images",
            details=f"It needs {MINIMUM >> 20} MiB at least; {size >> 20} MiB could be had.",
        )
    new = file_of(paths).with_name(f"{file_of(paths).name}.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        argv = ["mkfs.xfs", "-q", "-K", "-m", "reflink=1", "-l", f"size={_LOG_SIZE}"]
        run.run([*argv, "-L", "pyvz", new], timeout=300)
        os.fsync(fd)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    new.rename(file_of(paths))
    file.fsync_directory(paths.vz)
    log.info("made %s: a pool of %d GiB at most", file_of(paths), size >> 30)


def _mount(paths: Paths) -> None:
    target = directory(paths)
    if mount.is_mount_point(target):
        return
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    image = file_of(paths)
    size = image.stat().st_size // _ALIGN * _ALIGN
    if loopdevice.find(image):
        raise MountError(
            f"The pool {image} is attached, but not mounted at {target}",
            hint="Somebody else uses it: look at the output of losetup -a.",
        )
    with loopdevice.attached(image, 0, size) as loop:
        mounted = filesystem.mount_detached(loop.device, "xfs")
        try:
            filesystem.place(mounted, target)
        finally:
            os.close(mounted)
    target.chmod(0o700)


def _grow(paths: Paths, room: int) -> None:
    """Let the pool have more of the node's disk when less than `room` is free in it."""
    free = filesystem.space_of(directory(paths)).free
    image = file_of(paths)
    status = image.stat()
    size = _most(paths, status.st_blocks * 512)
    if free >= room or size < status.st_size + _ALIGN:
        return
    with image.open("r+b") as opened:
        opened.truncate(size)
        os.fsync(opened.fileno())
    for loop in loopdevice.find(image):
        loopdevice.resize(loop.device, size)
    fd = os.open(directory(paths), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        filesystem.grow_online(fd, "xfs", size)
    finally:
        os.close(fd)
    log.info("%s: grown to %d GiB at most", image, size >> 30)


def _most(paths: Paths, have: int) -> int:
    """Return to what size the pool, which takes `have` bytes now, may grow."""
    space = os.statvfs(paths.vz)
    free = int(space.f_bavail * space.f_frsize * _SHARE)
    return (have + free) // _ALIGN * _ALIGN
