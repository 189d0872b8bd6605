"""User namespaces' id maps, idmapped trees and the names of the kinds of namespaces.

Nothing here enters a namespace: that is for the keeper's children (setns(2) into user and mount
namespaces refuses threaded processes).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvz.linux import syscall

KINDS = {
    "mnt": syscall.CLONE_NEWNS,
    "pid": syscall.CLONE_NEWPID,
    "uts": syscall.CLONE_NEWUTS,
    "ipc": syscall.CLONE_NEWIPC,
    "net": syscall.CLONE_NEWNET,
    "cgroup": syscall.CLONE_NEWCGROUP,
    "user": syscall.CLONE_NEWUSER,
    "time": syscall.CLONE_NEWTIME,
}


_ATTRIBUTES = {
    "ro": syscall.MOUNT_ATTR_RDONLY,
    "nosuid": syscall.MOUNT_ATTR_NOSUID,
    "nodev": syscall.MOUNT_ATTR_NODEV,
    "noexec": syscall.MOUNT_ATTR_NOEXEC,
}


def identity(pid: int, kind: str) -> tuple[int, int]:
    """Device and inode of a process's namespace: equal for two processes that share it."""
    found = os.stat(f"/proc/{pid}/ns/{kind}")
    return found.st_dev, found.st_ino


def differing(pid: int) -> int:
    """CLONE_NEW* of every namespace in which the process differs from us (what setns may join)."""
    flags = 0
    for kind, flag in KINDS.items():
        try:
            if identity(pid, kind) != identity(os.getpid(), kind):
                flags |= flag
        except FileNotFoundError:  # a kernel without that kind
            continue
    return flags


def write_id_maps(pid: int, first: int, count: int) -> None:
    """Map 0..count-1 inside the new user namespace of PID to first..first+count-1 outside."""
    line = f"0 {first} {count}\n"
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(line)


def open_user(pid: int) -> int:
    """Return a descriptor of the process's user namespace."""
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def detached_tree(
    path: str, *, userns: int | None = None, attributes: Sequence[str] = (), recursive: bool = True
) -> int:
    """Return a detached copy of the mount at PATH as a descriptor, idmapped into a user namespace.

    attributes: of "ro", "nosuid", "nodev", "noexec".
    The super block stays busy, invisibly, until the descriptor is closed or the mount attached
    and gone; so close it at once when it was handed on.  It is private: a copy of a shared mount
    would be its peer, with which pivot_root(2) refuses to work, and show here what is mounted
    there.  OSError EINVAL: the file system does not support idmapped mounts.
    """
    deep = syscall.AT_RECURSIVE if recursive else 0
    tree = syscall.open_tree(syscall.AT_FDCWD, path, syscall.OPEN_TREE_CLONE | deep)
    wanted = 0
    for name in attributes:
        wanted |= _ATTRIBUTES[name]
    if userns is not None:
        wanted |= syscall.MOUNT_ATTR_IDMAP
    try:
        # A copy of a shared mount (systemd makes "/" one) is shared too, and pivot_root(2) refuses
        # that; nor shall what is mounted inside show up on the node.
        attr = syscall.MountAttr(set=wanted, propagation=syscall.MS_PRIVATE, userns_fd=userns or 0)
        syscall.mount_setattr(tree, "", attr, syscall.AT_EMPTY_PATH | deep)
    except BaseException:
        os.close(tree)
        raise
    return tree
