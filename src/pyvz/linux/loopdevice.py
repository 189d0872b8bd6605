"""Loop devices: a part of a regular file as a block device (constants: linux/loop.h).

A device is configured in one ioctl (LOOP_CONFIGURE) and what the kernel made of it is read back,
because direct I/O is dropped silently where the backing file system has none.  `attached` gives a
device that clears itself: it lives as long as the block or whatever was mounted on it meanwhile,
so that the death of this process leaves none behind.

Detaching is lazy in the kernel: a device stays while anybody, also a mount in another namespace,
holds it.  `detach` and `wait_gone` wait, and then say who.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import Busy, NotEnoughResources, StorageError
from pyvz.linux.mount import mounts

LOOP_MAJOR: Final = 7
SECTOR: Final = 512
TIMEOUT: Final = 30.0  # seconds for a device to go
_SYS_BLOCK: Final = "/sys/block"
_CONTROL: Final = "/dev/loop-control"
_CLR_FD: Final = 0x4C01
_SET_STATUS64: Final = 0x4C04
_GET_STATUS64: Final = 0x4C05
_SET_CAPACITY: Final = 0x4C07
_CONFIGURE: Final = 0x4C0A
_CTL_GET_FREE: Final = 0x4C82
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
# struct loop_info64: device inode rdevice offset sizelimit, number encrypt_type
# encrypt_key_size flags, file_name crypt_name encrypt_key, init[2]
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s8Q")  # struct loop_config: fd block_size info
_ATTEMPTS: Final = 64  # others ask for the same free device: one of us gets it
_POLL: Final = 0.005
_MAX_NAMED: Final = 10


class Loop(NamedTuple):
    """An attached device.  direct_io: whether the page cache of the node is passed by."""

    device: Path
    major: int
    minor: int
    direct_io: bool


class Backing(NamedTuple):
    """What is behind a device: (device, inode) of the file, and the part of it in bytes."""

    device: int
    inode: int
    offset: int
    size: int
    flags: int


def attach(path: Path, offset: int, size: int, *, readonly: bool = False, sector: int = 0) -> Loop:
    """Attach `size` bytes of the regular file at `path` from `offset` on; it stays until `detach`.

    sector: bytes of the device's sectors; 0: what direct I/O on that file needs (512, but 4096 on
    xfs as soon as the file shares blocks).  A smaller one than that means no direct I/O.
    Raises StorageError (no regular file, too short, refused by the kernel), NotEnoughResources.
    """
    loop, fd = _configured(path, (offset, size, sector), readonly=readonly, flags=_DIRECT_IO)
    os.close(fd)
    return loop


@contextlib.contextmanager
def attached(
    path: Path,
    offset: int,
    size: int,
    *,
    readonly: bool = False,
    sector: int = 0,
    direct: bool = True,
) -> Iterator[Loop]:
    """Attach as `attach` does, for the length of the block and of any mount made in it.

    direct: False for a file whose server cannot be trusted with direct I/O.
    """
    flags = _AUTOCLEAR | (_DIRECT_IO if direct else 0)
    loop, fd = _configured(path, (offset, size, sector), readonly=readonly, flags=flags)
    try:
        yield loop
    finally:
        os.close(fd)


def _configured(
    path: Path, wanted: tuple[int, int, int], *, readonly: bool, flags: int
) -> tuple[Loop, int]:
    """Return a device configured for (offset, size, sector) of the file, and it opened."""
    *_, sector = wanted
    part = wanted[:2]
    access = os.O_RDONLY if readonly else os.O_RDWR
    file = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(file)
        _check_part(path, status, part)
        flags |= _READ_ONLY if readonly else 0
        info = _INFO.pack(
            0, 0, 0, *part, 0, 0, 0, flags, os.fsencode(path.name)[:63], b"", b"", 0, 0
        )
        for _ in range(_ATTEMPTS):
            number = _free()
            opened = _try(number, _CONFIG.pack(file, sector, info, *(0,) * 8), access)
            if opened is not None:
                break
        else:
            raise NotEnoughResources(f"No loop device could be had for {path}")
    finally:
        os.close(file)
    try:
        return _read_back(opened, number, (path, status, part)), opened
    except BaseException:
        with contextlib.suppress(OSError):
            fcntl.ioctl(opened, _CLR_FD)
        os.close(opened)
        raise


def _check_part(path: Path, status: os.stat_result, part: tuple[int, int]) -> None:
    offset, size = part
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is not a regular file")
    if offset % SECTOR or size % SECTOR or size <= 0 or offset + size > status.st_size:
        raise StorageError(
            f"{path} is not as long as it says",
            details=f"It has {status.st_size} bytes; {size} from {offset} on are wanted.",
        )


def _free() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _CTL_GET_FREE)
    except OSError as error:
        raise NotEnoughResources(f"No loop device is free: {error.strerror}") from error
    finally:
        os.close(control)


def _try(number: int, config: bytes, access: int) -> int | None:
    """Configure device `number` and return it opened; None when somebody else was quicker."""
    try:
        fd = _open(number, access)
    except FileNotFoundError:  # not yet made by devtmpfs
        time.sleep(_POLL)
        return None
    try:
        fcntl.ioctl(fd, _CONFIGURE, config)
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EBUSY, errno.ENXIO}:
            return None
        raise StorageError(f"The kernel refused a loop device: {error.strerror}") from error
    return fd


def _open(number: int, access: int = os.O_RDONLY) -> int:
    """Open device `number`, and make sure that it is that one."""
    fd = os.open(_device(number), access | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode) or status.st_rdev != os.makedev(LOOP_MAJOR, number):
        os.close(fd)
        raise StorageError(f"{_device(number)} is not loop device {number}")
    return fd


def _device(number: int) -> Path:
    return Path(f"/dev/loop{number}")


def _read_back(fd: int, number: int, wanted: tuple[Path, os.stat_result, tuple[int, int]]) -> Loop:
    """Return what the kernel made of it; raises StorageError when it is something else."""
    path, status, part = wanted
    got = _backing(fd)
    if (got.inode, got.offset, got.size) != (status.st_ino, *part):
        raise StorageError(f"{_device(number)} does not show {path}", details=str(got))
    return Loop(_device(number), LOOP_MAJOR, number, bool(got.flags & _DIRECT_IO))


def _backing(fd: int) -> Backing:
    info = _INFO.unpack(fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size)))
    return Backing(info[0], info[1], info[3], info[4], info[8])


def number_of(device: Path) -> int:
    """Return N of /dev/loopN; raises StorageError for any other device."""
    status = device.stat()
    if not stat.S_ISBLK(status.st_mode) or os.major(status.st_rdev) != LOOP_MAJOR:
        raise StorageError(f"{device} is not a loop device")
    return os.minor(status.st_rdev)


def find(path: Path) -> list[Loop]:
    """Return the devices that show (a part of) the file at `path`; none when it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for number in _attached_numbers():
        backing = backing_of(number)
        if backing is not None and (backing.device, backing.inode) == _key(status):
            direct = bool(backing.flags & _DIRECT_IO)
            found.append(Loop(_device(number), LOOP_MAJOR, number, direct))
    return found


def below(directory: Path) -> list[Path]:
    """Return the devices whose files lie in `directory` (a real path) or deeper, by name."""
    top = os.path.join(directory, "")
    found = []
    for number in _attached_numbers():
        with (
            contextlib.suppress(OSError),
            open(f"{_SYS_BLOCK}/loop{number}/loop/backing_file", encoding="utf-8") as file,
        ):
            if file.read().startswith(top):
                found.append(_device(number))
    return found


def backing_files() -> list[Path]:
    """Return the files behind all loop devices of the machine, each once; gone ones left out."""
    found = []
    for number in _attached_numbers():
        with (
            contextlib.suppress(OSError),
            open(f"{_SYS_BLOCK}/loop{number}/loop/backing_file", encoding="utf-8") as file,
        ):
            found.append(Path(file.read().rstrip("\n")))
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _key(status: os.stat_result) -> tuple[int, int]:
    # loop_info64 has the device as huge_encode_dev() writes it, which is the layout of glibc.
    return status.st_dev, status.st_ino


def backing_of(number: int) -> Backing | None:
    """Return what is behind loop device `number`; None when nothing is."""
    try:
        fd = _open(number)
    except OSError:
        return None
    try:
        return _backing(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _attached_numbers() -> list[int]:
    numbers = []
    for name in os.listdir(_SYS_BLOCK):
        if name.startswith("loop") and os.path.exists(f"{_SYS_BLOCK}/{name}/loop"):
            numbers.append(int(name[4:]))
    return sorted(numbers)


def resize(device: Path, size: int) -> None:
    """Show `size` bytes of the grown (or cut) file from now on; raises StorageError."""
    number = number_of(device)
    fd = _open(number, os.O_RDWR)
    try:
        raw = bytearray(fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size)))
        fields = list(_INFO.unpack(raw))
        fields[4] = size
        fcntl.ioctl(fd, _SET_STATUS64, _INFO.pack(*fields))
        fcntl.ioctl(fd, _SET_CAPACITY)
    except OSError as error:
        raise StorageError(f"{device} could not be resized: {error.strerror}") from error
    finally:
        os.close(fd)


def detach(device: Path, timeout: float = TIMEOUT) -> None:
    """Detach, and return when it is really gone; nothing attached is fine.

    Raises Busy, naming who holds it, after `timeout` seconds; the kernel will detach it then as
    soon as it is let go.
    """
    number = number_of(device)
    before = backing_of(number)
    if before is None:
        return
    fd = _open(number)
    try:
        fcntl.ioctl(fd, _CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise StorageError(f"{device} could not be detached: {error.strerror}") from error
    finally:
        os.close(fd)
    wait_gone(number, before, timeout)


def wait_gone(number: int, backing: Backing, timeout: float = TIMEOUT) -> None:
    """Wait until device `number` shows another file than `backing`, or none; raises Busy."""
    deadline = time.monotonic() + timeout
    while (now := backing_of(number)) is not None:
        if (now.device, now.inode) != (backing.device, backing.inode):
            return
        if time.monotonic() >= deadline:
            raise Busy(
                f"{_device(number)} is still in use and could not be detached",
                details="\n".join(holders(number)),
                hint="It is detached as soon as those let it go.",
            )
        time.sleep(_POLL)


def holders(number: int) -> list[str]:
    """Return in words who holds a device: mounts of any namespace, and processes; at most ten."""
    device = (LOOP_MAJOR, number)
    name = os.fspath(_device(number))
    found: list[str] = []
    seen: set[str] = set()
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):
            found += _open_files(pid, name)
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            found += [
                f"mounted at {entry.target} in the mount namespace of {program} (pid {pid})"
                for entry in mounts(pid=pid)
                if entry.device == device
            ]
    return found[:_MAX_NAMED]


def _open_files(pid: int, device: str) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == device:
                program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
                found.append(f"opened by {program} (pid {pid})")
    return found
