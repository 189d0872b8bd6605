"""A root of its own for one process: the system's programs, /dev/null, what it is shown, and
nothing else.

Used by small programs that read what strangers have made (trees of guests, disk images): whatever
they are led to, it is not there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping

from pyvz.linux import syscall

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_NULL = "dev/null"
_PLACE = "/tmp"  # noqa: S108  any directory that exists: what is mounted there only we see


def enter(shown: Mapping[str, str], readonly: Collection[str] = ()) -> None:
    """Make the view the root of this process, which has one thread; OSError when it cannot be.

    shown: {name in it: directory or file of the node}.  readonly: names that are not written.
    """
    # Before the namespace is another: a path may be a descriptor (/proc/self/fd/N) of this one.
    found = {
        name: syscall.open_tree(syscall.AT_FDCWD, path, syscall.OPEN_TREE_CLONE)
        for name, path in {_NULL: f"/{_NULL}", **shown}.items()
    }
    syscall.unshare(syscall.CLONE_NEWNS)
    syscall.mount("none", "/", None, syscall.MS_REC | syscall.MS_PRIVATE, None)
    syscall.mount("tmpfs", _PLACE, "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=700")
    for name in _SYSTEM:
        _system(name)
    os.mkdir(f"{_PLACE}/dev", 0o755)
    for name, fd in found.items():
        target = f"{_PLACE}/{name}"
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target, 0o700)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        syscall.move_mount(fd, "", syscall.AT_FDCWD, target, syscall.MOVE_MOUNT_F_EMPTY_PATH)
        if name in readonly:
            _set_readonly(target)
    os.chdir(_PLACE)
    syscall.pivot_root(".", ".")
    syscall.umount2(".", syscall.MNT_DETACH)
    os.chdir("/")


def _system(name: str) -> None:
    """Show /NAME of the node, read-only; a link stays a link."""
    source, target = f"/{name}", f"{_PLACE}/{name}"
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.mkdir(target, 0o755)
        syscall.mount(source, target, None, syscall.MS_BIND, None)
        _set_readonly(target)


def _set_readonly(target: str) -> None:
    attributes = syscall.MountAttr(set=syscall.MOUNT_ATTR_RDONLY | syscall.MOUNT_ATTR_NODEV)
    syscall.mount_setattr(syscall.AT_FDCWD, target, attributes, 0)
