"""Subvolumes of btrfs and their limits, by the ioctls of linux/btrfs.h.

No program is run and no output is parsed: names of nested subvolumes are chosen by the guest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from pyvz.linux import syscall
from pyvz.linux.mount import holding_mount

# linux/btrfs.h; _IOW(0x94, n, 4096) and the like, which are the same on all our machines
_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_SNAP_CREATE_V2 = 0x50009417
_INO_LOOKUP = 0xD0009412
_SUBVOL_SETFLAGS = 0x4008941A
_QUOTA_CTL = 0xC0109428
_QGROUP_LIMIT = 0x8030942B
_FS_INFO = 0x8400941F
_GET_SUBVOL_ROOTREF = 0xD000943D
_GET_SUBVOL_INFO = 0x81F8943C
_OTRANSID = 352  # after treeid, name[256], 4 x u64, 3 uuids, ctransid
_INO_LOOKUP_USER = 0xD000943E
_SIZE = 4096
_RDONLY = 2  # BTRFS_SUBVOL_RDONLY
_QUOTA_ENABLE = 1
_LIMIT_MAX_RFER = 1
_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the root directory of every subvolume
_MAX_DEPTH = 100


def is_btrfs(path: str | Path) -> bool:
    """Whether `path`, which exists, lies in a btrfs."""
    return holding_mount(path).fstype == "btrfs"


def is_subvolume(path: str | Path) -> bool:
    """Whether `path` is the root of a subvolume; a missing one is not."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_ino == _ROOT_INODE and is_btrfs(path)


def create(path: Path) -> None:
    """Make an empty subvolume; raises FileExistsError, OSError (ENOTTY: no btrfs)."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE, _named(path.name))


def snapshot(source: Path, target: Path, *, readonly: bool = False) -> None:
    """Make `target` a snapshot of the subvolume `source`, with all that are nested in it.

    A subvolume is taken as it is at one moment, written out; nested ones follow, each at its own.
    Raises OSError (EXDEV: another file system); then there is no `target`.
    """
    with _opened(source) as old, _opened(target.parent) as parent:
        try:
            _snapshot((old, parent), target.name, 0, readonly=readonly)
        except OSError as error:
            if error.errno != errno.EEXIST:
                destroy(target)
            raise


def _snapshot(places: tuple[int, int], name: str, depth: int, *, readonly: bool) -> None:
    """Make `name` in the directory places[1] a snapshot of the subvolume places[0]."""
    _check_depth(name, depth)
    old, parent = places
    nested = _nested(old)
    # struct btrfs_ioctl_vol_args_v2: fd, transid, flags, unused[4], name[4040]
    head = struct.pack("=qQQ32x", old, 0, _RDONLY if readonly and not nested else 0)
    fcntl.ioctl(parent, _SNAP_CREATE_V2, _filled(head + os.fsencode(name)))
    if not nested:
        return
    with _opened_at(parent, name) as new:
        for directory, child in nested:
            with (
                _opened_at(old, directory) as here,
                _opened_at(here, child) as original,
                _opened_at(new, directory) as there,
            ):
                os.rmdir(child, dir_fd=there)  # the snapshot has an empty directory in its place
                _snapshot((original, there), child, depth + 1, readonly=readonly)
        if readonly:
            fcntl.ioctl(new, _SUBVOL_SETFLAGS, struct.pack("=Q", _RDONLY))


def nested(path: Path) -> list[Path]:
    """Return the subvolumes directly below a subvolume, relative to it."""
    with _opened(path) as fd:
        return [Path(directory, name) for directory, name in _nested(fd)]


def written(path: Path) -> int:
    """Return the transaction in which a subvolume was made: a later one has a larger number."""
    with _opened(path) as fd:
        answer = bytearray(504)  # struct btrfs_ioctl_get_subvol_info_args
        fcntl.ioctl(fd, _GET_SUBVOL_INFO, answer)
    return int(struct.unpack_from("=Q", answer, _OTRANSID)[0])


def set_readonly(path: Path) -> None:
    """Make a subvolume one that cannot be written to."""
    with _opened(path) as fd:
        fcntl.ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", _RDONLY))


def destroy(path: Path) -> None:
    """Remove a subvolume with all that are nested in it.  Idempotent.

    Raises OSError (EBUSY: it, or one in it, is mounted).
    """
    with contextlib.suppress(FileNotFoundError), _opened(path.parent) as parent:
        _destroy(parent, path.name, 0)


def _destroy(parent: int, name: str, depth: int) -> None:
    _check_depth(name, depth)
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = syscall.openat2(parent, name, flags, 0, resolve)
    try:
        nested = _nested(fd)
        if nested:  # one that is read-only (a snapshot, or the guest said so) keeps what is in it
            fcntl.ioctl(fd, _SUBVOL_SETFLAGS, struct.pack("=Q", 0))
        for directory, child in nested:
            with _opened_at(fd, directory) as inside:
                _destroy(inside, child, depth + 1)
    finally:
        os.close(fd)
    fcntl.ioctl(parent, _SNAP_DESTROY, _named(name))


def _check_depth(name: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OSError(errno.ELOOP, "too many nested subvolumes", name)


def _nested(fd: int) -> list[tuple[str, str]]:
    """Return (directory in the subvolume, name) of every subvolume directly below it."""
    return [_place(fd, tree, directory) for tree, directory in _children(fd)]


def _children(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (tree, inode of the directory that holds it) of the subvolumes directly below."""
    smallest = 0
    while True:
        # struct btrfs_ioctl_get_subvol_rootref_args: min_treeid, 255 x (treeid, dirid), num_items
        answer = _filled(struct.pack("=Q", smallest))
        more = False
        try:
            fcntl.ioctl(fd, _GET_SUBVOL_ROOTREF, answer)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # there are more than fit
                raise
            more = True
        for index in range(answer[4088]):
            tree, directory = struct.unpack_from("=QQ", answer, 8 + 16 * index)
            yield tree, directory
            smallest = tree + 1
        if not more:
            return


def _place(fd: int, tree: int, directory: int) -> tuple[str, str]:
    # struct btrfs_ioctl_ino_lookup_user_args: dirid, treeid, name[256], path[3824]
    answer = _filled(struct.pack("=QQ", directory, tree))
    fcntl.ioctl(fd, _INO_LOOKUP_USER, answer)
    name = bytes(answer[16:272]).split(b"\0", 1)[0]
    path = bytes(answer[272:]).split(b"\0", 1)[0]
    return os.fsdecode(path).rstrip("/") or ".", os.fsdecode(name)


def enable_quota(path: Path) -> None:
    """Turn quota groups on for the whole file system that `path` lies in.  Idempotent."""
    with _opened(path) as fd:
        fcntl.ioctl(fd, _QUOTA_CTL, struct.pack("=QQ", _QUOTA_ENABLE, 0))


def has_quota(path: Path) -> bool:
    """Whether quota groups are on in the file system that `path` lies in."""
    return (_sysfs(path) / "qgroups").is_dir()


def set_limit(path: Path, size: int | None) -> None:
    """Limit the data that the subvolume refers to, to `size` bytes (None: no limit)."""
    flags, rfer = _LIMIT_MAX_RFER, (1 << 64) - 1 if size is None else size
    with _opened(path) as fd:
        # struct btrfs_ioctl_qgroup_limit_args: qgroupid (0: this subvolume's), then flags,
        # max_rfer, max_excl, rsv_rfer, rsv_excl
        fcntl.ioctl(fd, _QGROUP_LIMIT, struct.pack("=QQQQQQ", 0, flags, rfer, 0, 0, 0))


def limit_and_use(path: Path) -> tuple[int | None, int]:
    """Return (limit or None, bytes referred to) of a subvolume; (None, 0) without quota."""
    group = _sysfs(path) / "qgroups" / f"0_{tree_id(path)}"
    try:
        used = int((group / "referenced").read_text())
        flags = int((group / "limit_flags").read_text(), 0)
        limit = int((group / "max_referenced").read_text())
    except FileNotFoundError:
        return None, 0
    limited = bool(flags & _LIMIT_MAX_RFER) and limit < (1 << 63)
    return (limit if limited else None), used


def tree_id(path: Path) -> int:
    """Return the id of the subvolume that `path` lies in."""
    with _opened(path) as fd:
        # struct btrfs_ioctl_ino_lookup_args: treeid (0: asked for), objectid, name
        answer = _filled(struct.pack("=QQ", 0, _ROOT_INODE))
        fcntl.ioctl(fd, _INO_LOOKUP, answer)
    (tree,) = struct.unpack_from("=Q", answer)
    return int(tree)


def _sysfs(path: Path) -> Path:
    with _opened(path) as fd:
        # struct btrfs_ioctl_fs_info_args: max_id, num_devices, fsid[16], ...
        answer = bytearray(1024)
        fcntl.ioctl(fd, _FS_INFO, answer)
    raw = bytes(answer[16:32]).hex()
    uuid = "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
    return Path("/sys/fs/btrfs") / uuid


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened_at(parent: int, path: str) -> Iterator[int]:
    resolve = syscall.RESOLVE_BENEATH | syscall.RESOLVE_NO_SYMLINKS
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = syscall.openat2(parent, path, flags, 0, resolve)
    try:
        yield fd
    finally:
        os.close(fd)


def _named(name: str) -> bytearray:
    return _filled(struct.pack("=q", 0) + os.fsencode(name))  # struct btrfs_ioctl_vol_args


def _filled(head: bytes) -> bytearray:
    return bytearray(head.ljust(_SIZE, b"\0"))  # fcntl refuses more than 1024 constant bytes
