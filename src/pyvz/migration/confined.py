"""Runs a program that can see a container's tree, the system's programs, and nothing else.

    python -m pyvz.migration.confined TREE STATE PROGRAM ARGUMENT...

The tree is /tree; STATE, a directory of ours, is /state ("-": none); /usr and what belongs to it
are there, read-only.  A tree is its guest's: links in it, and directories that become links while
they are read, lead to nothing of the node from here.  A program of its own, as it changes its mount
namespace and root.
Exit status: that of the program; 125: the view could not be made (the reason is on stderr).
"""

from __future__ import annotations

import os
import sys

from pyvz.linux import syscall

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_PLACE = "/tmp"  # noqa: S108  any directory that exists: what is mounted there only we see


def main(argv: list[str]) -> int:
    """Make the view, become the program."""
    tree, state, *program = argv
    try:
        enter({"tree": tree} | ({"state": state} if state != "-" else {}))
        os.execv(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{error}\n")
    return 125


def enter(shown: dict[str, str]) -> None:
    """Make the view the root of this process; shown: name in it -> directory of the node."""
    syscall.unshare(syscall.CLONE_NEWNS)
    syscall.mount("none", "/", None, syscall.MS_REC | syscall.MS_PRIVATE, None)
    found = {
        name: syscall.open_tree(syscall.AT_FDCWD, path, syscall.OPEN_TREE_CLONE)
        for name, path in shown.items()
    }
    syscall.mount("tmpfs", _PLACE, "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=700")
    for name in _SYSTEM:
        _system(name)
    for name, fd in found.items():
        target = f"{_PLACE}/{name}"
        os.mkdir(target, 0o700)
        syscall.move_mount(fd, "", syscall.AT_FDCWD, target, syscall.MOVE_MOUNT_F_EMPTY_PATH)
    os.chdir(_PLACE)
    syscall.pivot_root(".", ".")
    syscall.umount2(".", syscall.MNT_DETACH)
    os.chdir("/tree")


def _system(name: str) -> None:
    """Show /NAME of the node, read-only; a link stays a link."""
    source, target = f"/{name}", f"{_PLACE}/{name}"
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.mkdir(target, 0o755)
        syscall.mount(source, target, None, syscall.MS_BIND, None)
        attributes = syscall.MountAttr(set=syscall.MOUNT_ATTR_RDONLY | syscall.MOUNT_ATTR_NODEV)
        syscall.mount_setattr(syscall.AT_FDCWD, target, attributes, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
