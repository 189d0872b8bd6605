"""Limits of directory trees by project quota, of xfs and ext4: one number per tree.

Every file of a tree carries the number (a "project"), a new one takes it over from its directory
(FS_XFLAG_PROJINHERIT), and the kernel counts per number.  statvfs(2) of such a directory tells
the limit and what is left of it, so `df` inside is exact.  A user namespace may not change the
number (fs/ioctl.c: fileattr_set_prepare).  There is no table of numbers: a tree says its own, and
one is free that has no use and no limit.

The file system has to be mounted with it: `prjquota` (xfs: at its mount only; ext4: with the
feature `project` of mkfs or tune2fs).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.linux import syscall

# linux/fs.h: struct fsxattr {xflags, extsize, nextents, projid, cowextsize, pad[8]}
_FSXATTR: Final = struct.Struct("=5I8x")
_GET_XATTR: Final = 0x801C581F
_SET_XATTR: Final = 0x401C5820
_INHERIT: Final = 0x200  # FS_XFLAG_PROJINHERIT

# linux/quota.h, linux/dqblk_xfs.h; quotactl(2) takes (command << 8) | type
_PROJECT: Final = 2  # PRJQUOTA
_GET: Final = 0x800007  # Q_GETQUOTA, Q_SETQUOTA: of both file systems since Linux 3.19
_SET: Final = 0x800008
_X_ON: Final = 0x5801  # Q_XQUOTAON
_X_STATE: Final = 0x5805  # Q_XGETQSTAT
_ENFORCED: Final = 1 << 5  # FS_QUOTA_PDQ_ENFD
_DQBLK: Final = struct.Struct("=8QI4x")  # struct if_dqblk
_BLOCK: Final = 1024  # QIF_DQBLKSIZE: what limits are counted in
_SPACE_LIMIT: Final = 1
_INODE_LIMIT: Final = 4
_STATE_SIZE: Final = 80  # struct fs_quota_stat
_OFF: Final = {errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTBLK}
_FIRST: Final = 1 << 16  # numbers below are the administrator's (projid(5))
_TRIES: Final = 64


class Use(NamedTuple):
    """What a project has and may have: bytes and files; a limit of None is none."""

    size: int | None
    used: int
    inodes: int | None
    inodes_used: int


def enforced(place: Path) -> bool:
    """Whether limits are kept in the file system that `place` lies in."""
    state = bytearray(_STATE_SIZE)
    with _opened(place) as fd:
        try:
            syscall.quotactl_fd(fd, _command(_X_STATE), 0, state)
        except OSError as error:
            if error.errno in _OFF:
                return False
            raise
    _, flags = struct.unpack_from("=bxH", state)
    return bool(flags & _ENFORCED)


def enforce(place: Path) -> None:
    """Have the kernel keep limits from now on; idempotent.

    ext4 with the feature `project` can be told while it is mounted, xfs only by its mount.
    Raises OSError.
    """
    if enforced(place):
        return
    with _opened(place) as fd:
        syscall.quotactl_fd(fd, _command(_X_ON), 0, bytearray(struct.pack("=I", _ENFORCED)))


def project(path: Path) -> int:
    """Return the number of a directory; 0 for none, also where the file system has none."""
    with _opened(path) as fd:
        try:
            _, *_, number, _ = _attributes(fd)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                return 0
            raise
    return number


def begin(directory: Path) -> int:
    """Give an empty directory a number of its own, which all in it gets; return it."""
    with _opened(directory) as fd:
        number = _free_number(fd)
        _assign(fd, number)
    return number


def adopt(tree: Path) -> int:
    """Give a tree that has files already a number of its own; return it.

    The guest may be at work in it: what is new below a directory that is done has the number.
    """
    number = project(tree) or begin(tree)
    for _, directories, files, folder in os.fwalk(tree, follow_symlinks=False):
        for name in (*directories, *files):
            _assign_name(folder, name, number)
    return number


def set_limits(place: Path, number: int, *, size: int | None, inodes: int | None) -> None:
    """Limit a project to so many bytes and files; None: no limit.  Raises OSError."""
    blocks = 0 if size is None else -(-size // _BLOCK)
    limits = (blocks, 0, 0, inodes or 0, 0, 0, 0, 0, _SPACE_LIMIT | _INODE_LIMIT)
    with _opened(place) as fd:
        syscall.quotactl_fd(fd, _command(_SET), number, bytearray(_DQBLK.pack(*limits)))


def use(place: Path, number: int) -> Use:
    """Return limits and use of a project, all zero for one that nobody has."""
    with _opened(place) as fd:
        return _use(fd, number)


def _use(fd: int, number: int) -> Use:
    answer = bytearray(_DQBLK.size)
    try:
        syscall.quotactl_fd(fd, _command(_GET), number, answer)
    except OSError as error:
        if error.errno != errno.ENOENT:  # xfs: no file and no limit has this number
            raise
        return Use(None, 0, None, 0)
    blocks, _, used, inodes, _, inodes_used, *_ = _DQBLK.unpack(answer)
    return Use(blocks * _BLOCK or None, used, inodes or None, inodes_used)


def _free_number(fd: int) -> int:
    for _ in range(_TRIES):
        number = _FIRST + secrets.randbelow((1 << 31) - _FIRST)
        if _use(fd, number) == Use(None, 0, None, 0):
            return number
    raise OSError(errno.ENOSPC, "no free project number was found")


def _assign_name(folder: int, name: str, number: int) -> None:
    """Give one file or directory the number; what is neither (a device, a link) cannot have it."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):  # the guest was quicker
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return
        fd = os.open(name, flags, dir_fd=folder)
        try:
            _assign(fd, number)
        finally:
            os.close(fd)


def _assign(fd: int, number: int) -> None:
    xflags, extsize, extents, _, cow = _attributes(fd)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        xflags |= _INHERIT
    fcntl.ioctl(fd, _SET_XATTR, _FSXATTR.pack(xflags, extsize, extents, number, cow))


def _attributes(fd: int) -> tuple[int, ...]:
    return _FSXATTR.unpack(fcntl.ioctl(fd, _GET_XATTR, bytes(_FSXATTR.size)))


def _command(command: int) -> int:
    return command << 8 | _PROJECT


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
