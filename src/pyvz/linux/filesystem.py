"""File systems on block devices and in image files: ext4 and xfs.

Programs make, check and shrink them; growing, freezing and trimming a mounted one are ioctls on
its root directory, which need no entry in a mount table (constants: linux/fs.h, fs/ext4/ext4.h,
fs/xfs/libxfs/xfs_fs.h).  `mounted` is a descriptor of that directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import MountError, NoSpace, StorageError, Timeout, Unsupported
from pyvz.linux import capability, run, syscall

log = logging.getLogger(__name__)

TYPES: Final = ("ext4", "xfs")
MINIMUM: Final = {"ext4": 8 << 20, "xfs": 300 << 20}  # bytes; mkfs.xfs refuses less since 5.19
_MORTAL_RETRIES: Final = 5  # seconds
FREEZE_TIMEOUT: Final = 30.0  # seconds after which the watchdog thaws
_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_FITRIM: Final = 0xC0185879
_EXT4_RESIZE: Final = 0x40086610  # EXT4_IOC_RESIZE_FS: _IOW('f', 16, __u64)
_XFS_GEOMETRY: Final = 0x80705864  # XFS_IOC_FSGEOMETRY_V1: _IOR('X', 100, 112 bytes)
_XFS_GROW: Final = 0x4010586E  # XFS_IOC_FSGROWFSDATA: _IOW('X', 110, 16 bytes)
_XFS_FREE_EOFBLOCKS: Final = 0x8080583A  # _IOR('X', 58, 128 bytes)
_XFS_EOFBLOCKS: Final = struct.Struct("=6I13Q")  # version flags uid gid prid pad ...
_XFS_BLOCKS: Final = struct.Struct("=I24xIQ")  # blocksize at 0, imaxpct at 28, datablocks at 32
_XFS_INODE_SIZE: Final = 24  # inodesize in struct xfs_fsop_geom_v1
HEAD: Final = 4096  # bytes of a file system that tell its kind and its space
_EXT_SUPERBLOCK: Final = 1024
_EXT_MAGIC: Final = (_EXT_SUPERBLOCK + 56, b"\x53\xef")
_XFS_MAGIC: Final = (0, b"XFSB")
_XFS_SECTOR: Final = 102  # sb_sectsize
_LARGEST_SECTOR: Final = 4096
_CHECK_TIMEOUT: Final = 3600.0


class Space(NamedTuple):
    """Bytes and inodes of a file system; spanned: how much of its device it makes use of."""

    total: int
    used: int
    free: int
    inodes: int
    inodes_used: int
    spanned: int


def space_of(path: str | Path) -> Space:
    """Return the space of the mounted file system that `path` is in."""
    found = os.statvfs(path)
    block = found.f_frsize
    return Space(
        total=found.f_blocks * block,
        used=(found.f_blocks - found.f_bfree) * block,
        free=found.f_bavail * block,
        inodes=found.f_files,
        inodes_used=found.f_files - found.f_ffree,
        spanned=found.f_blocks * block,
    )


def space_at(path: Path, offset: int = 0) -> Space:
    """Return the space of the unmounted file system at `offset` of a file or device.

    What its superblock said when it was unmounted.  Raises StorageError for an unknown one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return space_in(os.pread(fd, HEAD, offset), path)
    finally:
        os.close(fd)


def space_in(head: bytes, path: Path) -> Space:
    """Return the space of an unmounted file system whose first HEAD bytes are these."""
    if _has(head, *_XFS_MAGIC):
        return _space_xfs(head)
    if _has(head, *_EXT_MAGIC):
        return _space_ext4(head[_EXT_SUPERBLOCK:])
    raise StorageError(f"There is no file system of a known kind in {path}")


def _has(head: bytes, place: int, magic: bytes) -> bool:
    return head[place : place + len(magic)] == magic


def _space_ext4(raw: bytes) -> Space:
    """Read struct ext4_super_block: low halves at 0, 4, 12, 16, 24, high ones at 0x150."""
    inodes, low, _reserved, free_low, free_inodes, _first, log_block = struct.unpack_from(
        "<7I", raw
    )
    high, _, free_high = struct.unpack_from("<3I", raw, 0x150)
    block = 1024 << log_block
    blocks, free = (high << 32 | low) * block, (free_high << 32 | free_low) * block
    return Space(blocks, blocks - free, free, inodes, inodes - free_inodes, blocks)


def _space_xfs(raw: bytes) -> Space:
    """Read struct xfs_dsb: sizes at 4 and 8, log at 96, imaxpct at 127, counters at 128."""
    block, blocks = struct.unpack_from(">IQ", raw, 4)
    (log_blocks,) = struct.unpack_from(">I", raw, 96)
    (inode_size,) = struct.unpack_from(">H", raw, 104)
    allocated, unused, free = struct.unpack_from(">3Q", raw, 128)
    total = (blocks - log_blocks) * block
    most = blocks * block * raw[127] // 100 // inode_size
    inodes = min(allocated + free * block // inode_size, most or 2**63)
    used = allocated - unused
    return Space(total, total - free * block, free * block, inodes, used, blocks * block)


def kind_at(path: Path, offset: int = 0) -> str | None:
    """Return "ext4" or "xfs" as the superblock at `offset` of a file or device says, else None."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for kind, (place, magic) in (("xfs", _XFS_MAGIC), ("ext4", _EXT_MAGIC)):
            if os.pread(fd, len(magic), offset + place) == magic:
                return kind
    finally:
        os.close(fd)
    return None


def sector_at(path: Path, offset: int = 0) -> int:
    """Return the largest sector in bytes with which the device of the file system may come.

    0: any.  xfs refuses a device whose sectors are larger than those it was made for.
    """
    if kind_at(path, offset) != "xfs":
        return 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        sector = int.from_bytes(os.pread(fd, 2, offset + _XFS_SECTOR), "big")
    finally:
        os.close(fd)
    return 0 if sector >= _LARGEST_SECTOR else sector


def can_grow_ext4_online() -> bool:
    """Whether this process may grow a mounted ext4: ext4_resize_begin() asks CAP_SYS_RESOURCE."""
    return capability.has(capability.CAP_SYS_RESOURCE)


class Form(NamedTuple):
    """How a file system is laid out.  block: bytes.  lazy: ext4 writes its tables when mounted."""

    block: int = 4096
    lazy: bool = True


def make(
    device: Path,
    kind: str,
    *,
    label: str = "",
    inodes: int | None = None,
    form: Form = Form(),  # noqa: B008  a value
) -> None:
    """Make a file system on a whole device; raises StorageError, CommandFailed, Unsupported.

    ext4: as `ploop init` makes it, without blocks for root only.  xfs: able to reflink.
    Nothing is discarded first: what lies below is a new sparse file.  inodes: of an ext4, for good.
    """
    if kind == "ext4":
        lazy = f"lazy_itable_init={form.lazy:d},lazy_journal_init={form.lazy:d}"
        options = ["-q", "-F", "-b", str(form.block), "-i", "16384", "-m", "0",
                   "-E", f"{lazy},nodiscard"]  # fmt: skip
        options += [] if inodes is None else ["-N", str(inodes)]
    elif kind == "xfs":
        # Sectors of 4 KiB: the kernel gives a loop device on a file that shares blocks no less.
        options = ["-q", "-f", "-K", "-m", "reflink=1", "-s", "size=4096"]
        options += ["-b", f"size={form.block}"]
    else:
        raise Unsupported(f"There is no file system '{kind}'", hint=f"Known: {', '.join(TYPES)}.")
    named = ["-L", label] if label else []
    run.run([f"mkfs.{kind}", *options, *named, device], timeout=600)


def mount_detached(
    device: Path, kind: str, *, readonly: bool = False, options: tuple[str, ...] = ()
) -> int:
    """Mount `device`, attached nowhere, without device files; the mount lives as its descriptor.

    options: of the file system ("noload", "dax=never").  Raises MountError; OSError EUCLEAN and
    the like (a damaged file system) come as MountError too, with the errno in `details`.
    """
    given: list[tuple[str, str | None]] = [("source", os.fspath(device))]
    if kind == "xfs":
        given.append(("nouuid", None))  # clones of one image have the same UUID
    if readonly:
        given.append(("ro", None))
    for option in options:
        name, equals, value = option.partition("=")
        given.append((name, value if equals else None))
    attributes = syscall.MOUNT_ATTR_NODEV | (syscall.MOUNT_ATTR_RDONLY if readonly else 0)
    try:
        return syscall.detached_mount(kind, attributes, given)
    except OSError as error:
        number = error.errno or 0
        raise MountError(
            f"{device} could not be mounted as {kind}: {os.strerror(number)}",
            details=errno.errorcode.get(number, ""),
        ) from error


def mount_mortal(
    device: Path, kind: str, *, readonly: bool = False, options: tuple[str, ...] = ()
) -> int:
    """As `mount_detached`, of a device that may die while it is used.

    xfs tries for ever to write metadata (Documentation/admin-guide/xfs.rst, "Error handling"): a
    freeze of it then never ends, and every sync(2) of the machine waits for that.  Here it gives
    up after a while.
    """
    mounted = mount_detached(device, kind, readonly=readonly, options=options)
    if kind == "xfs" and not readonly:
        policy = Path("/sys/fs/xfs") / device.name / "error/metadata"
        try:
            for error in ("EIO", "default"):
                limit = policy / error / "retry_timeout_seconds"
                limit.write_text(f"{_MORTAL_RETRIES}\n", encoding="ascii")
        except OSError as error:
            os.close(mounted)
            raise MountError(f"{policy} could not be set: {error.strerror}") from error
    return mounted


def place(mounted: int, target: Path) -> None:
    """Attach a detached mount to the directory `target`; raises MountError."""
    try:
        syscall.move_mount(mounted, "", syscall.AT_FDCWD, target)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise MountError(f"{target} could not be mounted: {why}") from error


def check(device: Path, kind: str, *, repair: bool = True) -> bool:
    """Check (and repair) an unmounted file system; return whether it was, or now is, whole.

    ext4: `e2fsck -p` replays the journal and repairs what needs no decision.  xfs replays its log
    when it is mounted, so that is done first; a log is never thrown away.
    """
    if kind == "ext4":
        words = ["e2fsck", "-p" if repair else "-n", "-f", device]
        code = run.run(words, timeout=_CHECK_TIMEOUT, check=False).code
        return code in ({0, 1} if repair else {0})
    if repair:
        with contextlib.suppress(MountError):
            os.close(mount_detached(device, kind))
        code = run.run(["xfs_repair", device], timeout=_CHECK_TIMEOUT, check=False).code
        return code == 0
    return run.run(["xfs_repair", "-n", device], timeout=_CHECK_TIMEOUT, check=False).code == 0


def grow_online(mounted: int, kind: str, size: int) -> None:
    """Let the mounted file system of the descriptor `mounted` fill `size` bytes of its device.

    Raises Unsupported (ext4 without CAP_SYS_RESOURCE), NoSpace, StorageError.
    """
    try:
        if kind == "xfs":
            _grow_xfs(mounted, size)
        else:
            block = os.fstatvfs(mounted).f_frsize
            _ioctl(mounted, _EXT4_RESIZE, struct.pack("=Q", size // block))
    except PermissionError as error:
        raise Unsupported(
            f"{kind} cannot be grown while it is mounted on this node",
            details="The kernel asks for CAP_SYS_RESOURCE, which this node does not have.",
            hint="Stop the container and try again.",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"There is no space to grow the {kind} file system") from error
        raise StorageError(f"{kind} could not be grown: {error.strerror}") from error


def _grow_xfs(mounted: int, size: int) -> None:
    geometry = _ioctl(mounted, _XFS_GEOMETRY, bytes(112))
    block, imaxpct, blocks = _XFS_BLOCKS.unpack_from(geometry)
    if size // block > blocks:
        _ioctl(mounted, _XFS_GROW, struct.pack("=QIi", size // block, imaxpct, 0))


def limit_inodes(mounted: int, count: int | None) -> None:
    """Have a mounted xfs hold about `count` inodes at most: a whole percentage of its blocks.

    None: all of them.  Raises StorageError.
    """
    geometry = _ioctl(mounted, _XFS_GEOMETRY, bytes(112))
    block, old, blocks = _XFS_BLOCKS.unpack_from(geometry)
    (inode_size,) = struct.unpack_from("=I", geometry, _XFS_INODE_SIZE)
    most = blocks * block // inode_size if count is None else count
    percent = min(100, max(1, -(-most * inode_size * 100 // (blocks * block))))
    if percent == old:
        return
    try:
        _ioctl(mounted, _XFS_GROW, struct.pack("=QIi", blocks, percent, 0))
    except OSError as error:
        raise StorageError(f"The inodes could not be limited: {error.strerror}") from error


def resize_offline(device: Path, kind: str, size: int) -> None:
    """Make an unmounted ext4 `size` bytes large (less or more); xfs only more.

    Raises NoSpace when what is in it does not fit, Unsupported, CommandFailed.
    """
    if kind == "xfs":
        mounted = mount_detached(device, kind)
        try:
            grow_online(mounted, kind, size)
        finally:
            os.close(mounted)
        return
    if not check(device, kind):
        raise StorageError(f"The file system on {device} is damaged", hint="Run e2fsck on it.")
    result = run.run(["resize2fs", device, f"{size >> 10}K"], timeout=_CHECK_TIMEOUT, check=False)
    if result.code:
        if "smaller than minimum" in result.stderr or "No space" in result.stderr:
            raise NoSpace(
                f"The files on the disk do not fit into {size >> 20} MiB",
                details=result.stderr.strip(),
            )
        raise run.failure(["resize2fs"], result)


def minimum(device: Path, kind: str) -> int:
    """Return to how many bytes an ext4 could shrink, about; Unsupported for xfs."""
    if kind != "ext4":
        raise Unsupported("An xfs file system cannot shrink")
    text = run.run(["resize2fs", "-P", "-f", device], timeout=600).stdout
    return int(text.rpartition(":")[2]) * _block_ext4(device)


def _block_ext4(device: Path) -> int:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        (log_block,) = struct.unpack("<I", os.pread(fd, 4, _EXT_SUPERBLOCK + 24))
    finally:
        os.close(fd)
    return 1024 << int(log_block)


def new_uuid(device: Path, kind: str) -> None:
    """Give an unmounted file system another UUID."""
    fresh = str(uuid.uuid4())
    argv = ["tune2fs", "-U", fresh] if kind == "ext4" else ["xfs_admin", "-U", fresh]
    run.run([*argv, device], timeout=600)


def trim(mounted: int) -> int:
    """Give free space back to what lies below (FITRIM); return the bytes the kernel speaks of."""
    # xfs frees the blocks of removed files some time later; this waits for it (xfs_inodegc_flush).
    with contextlib.suppress(OSError):
        _ioctl(mounted, _XFS_FREE_EOFBLOCKS, _XFS_EOFBLOCKS.pack(1, 1, *(0,) * 17))
    sync(mounted)
    try:
        raw = _ioctl(mounted, _FITRIM, struct.pack("=3Q", 0, 2**64 - 1, 0))
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY}:
            raise Unsupported(
                "Free space cannot be given back: there is no discard here"
            ) from error
        raise
    return int(struct.unpack("=3Q", raw)[1])


def sync(mounted: int) -> None:
    """Write everything out: syncfs(2)."""
    with _opened(mounted) as directory:
        syscall.syncfs(directory)


@contextlib.contextmanager
def frozen(mounted: int, timeout: float = FREEZE_TIMEOUT) -> Iterator[None]:
    """Keep the file system still (written out, no writes) for the length of the block.

    It is thawed in any case, by a watchdog when the block takes longer than `timeout` seconds:
    then Timeout is raised at its end, for what was done in it saw writes.
    """
    expired = threading.Event()
    # Opened before: an xfs whose device dies meanwhile opens nothing any more (EIO), and a file
    # system that stays frozen outlives its last mount, with its device.
    with _opened(mounted) as directory:

        def expire() -> None:
            expired.set()
            log.error("a file system was frozen for %g s: thawed by the watchdog", timeout)
            _thaw(directory)

        _freeze(directory)
        watchdog = threading.Timer(timeout, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()
            _thaw(directory)
    if expired.is_set():
        raise Timeout(f"The file system could not be kept frozen for more than {timeout:g} s")


def freeze(mounted: int) -> None:
    """Freeze (FIFREEZE); raises StorageError.  Prefer `frozen`."""
    with _opened(mounted) as directory:
        _freeze(directory)


def thaw(mounted: int) -> bool:
    """Thaw (FITHAW); False when it was not frozen (EINVAL)."""
    with _opened(mounted) as directory:
        return _thaw(directory)


def _freeze(directory: int) -> None:
    try:
        fcntl.ioctl(directory, _FIFREEZE, bytes(4))
    except OSError as error:
        raise StorageError(f"The file system could not be frozen: {error.strerror}") from error


def _thaw(directory: int) -> bool:
    try:
        fcntl.ioctl(directory, _FITHAW, bytes(4))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


@contextlib.contextmanager
def _opened(mounted: int) -> Iterator[int]:
    """Open the directory that a descriptor names: that of a detached mount is an O_PATH one."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    try:
        yield directory
    finally:
        os.close(directory)


def _ioctl(mounted: int, request: int, argument: bytes) -> bytes:
    with _opened(mounted) as directory:
        return fcntl.ioctl(directory, request, argument)
