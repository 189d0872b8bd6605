"""True figures inside: files of lxcfs lie over the kernel's own in /proc and /sys.

The kernel shows every container the node's memory, CPUs, load and uptime; lxcfs answers with those
of the reader's cgroup instead.  Its files are bound one by one over those of the kernel.

Nobody but `Files.take` looks anything up in lxcfs: a look-up in a FUSE file system waits for the
daemon, which may hang.  What was found is kept open, and copies of mounts are made by descriptor,
which asks nobody.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.container.spec import Bind
from pyvz.linux import syscall

# A path inside a container is also the path in lxcfs.  Not /proc/diskstats: lxcfs (to 6.0) counts
# by files of the CFQ scheduler, gone since Linux 5.0, and without them shows the node's disks.
TARGETS = (
    *("/proc/cpuinfo", "/proc/loadavg", "/proc/meminfo", "/proc/stat", "/proc/swaps"),
    *("/proc/uptime", "/sys/devices/system/cpu/online"),
)
FSTYPE = "fuse.lxcfs"

_ATTRIBUTES = (
    syscall.MOUNT_ATTR_RDONLY
    | syscall.MOUNT_ATTR_NOSUID
    | syscall.MOUNT_ATTR_NODEV
    | syscall.MOUNT_ATTR_NOEXEC
)


class Tree(NamedTuple):
    """A detached mount of one file, and where it belongs; the descriptor is the holder's."""

    target: str
    fd: int


def close(trees: Sequence[Tree]) -> None:
    """Close the descriptors of mounts."""
    for tree in trees:
        os.close(tree.fd)


def detached(fd: int) -> int:
    """Return a read-only copy of the mount of an open (O_PATH) file, attached nowhere."""
    flags = syscall.OPEN_TREE_CLONE | syscall.AT_EMPTY_PATH
    tree = syscall.open_tree(fd, "", flags)
    try:
        # Private: a copy of a shared mount would be its peer and show what is mounted on it.
        attributes = syscall.MountAttr(set=_ATTRIBUTES, propagation=syscall.MS_PRIVATE)
        syscall.mount_setattr(tree, "", attributes, syscall.AT_EMPTY_PATH)
    except BaseException:
        os.close(tree)
        raise
    return tree


def open_files(directory: Path) -> dict[str, int]:
    """Return target -> O_PATH descriptor of the files that the lxcfs at DIRECTORY has.

    Waits for lxcfs.
    """
    found: dict[str, int] = {}
    try:
        for target in TARGETS:
            try:
                path = f"{directory}{target}"
                found[target] = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:  # another version of lxcfs has other files
                continue
    except BaseException:
        for fd in found.values():
            os.close(fd)
        raise
    return found


class Files:
    """The files of the lxcfs that serves the node now; none while there is none.  Thread-safe.

    summon: called before a container starts, so that there is an lxcfs (operations/figures.py).
    """

    def __init__(self) -> None:
        self.summon: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._directory = Path("/")

    def take(self, directory: Path) -> None:
        """Use the lxcfs mounted at DIRECTORY from now on; OSError.  Waits for lxcfs."""
        self._replace(open_files(directory))
        self._directory = directory

    def drop(self) -> None:
        """Have no lxcfs; idempotent."""
        self._replace({})

    def _replace(self, files: dict[str, int]) -> None:
        with self._lock:
            former, self._open = self._open, files
        for fd in former.values():
            os.close(fd)

    def binds(self) -> tuple[Bind, ...]:
        """Return the files as binds: for those who take them by name (CRIU)."""
        with self._lock:
            targets = list(self._open)
        return tuple(
            Bind(Path(f"{self._directory}{target}"), target, read_only=True, idmap=False)
            for target in targets
        )

    def trees(self) -> list[Tree]:
        """Return a fresh mount for each file, to be attached in one container."""
        made: list[Tree] = []
        with self._lock:
            try:
                for target, fd in self._open.items():
                    made.append(Tree(target, detached(fd)))
            except BaseException:
                close(made)
                raise
        return made
