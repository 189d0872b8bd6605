"""Attaches a mount of the node inside a running container, or takes it away again.

    python -m pyvz.container.attach attach PID START mapped|plain SOURCE TARGET
    python -m pyvz.container.attach detach PID START mapped|plain MAJOR:MINOR TARGET

A program of its own, because only a process with one thread may enter a user and a mount
namespace.  The tree is cloned and idmapped on the node's side; inside, all paths are those of the
container, and the rights are those of its root, who cannot see us: we are not in its pid
namespace.  Nothing of the container is loaded or run.  Exit status: 0, or the errno.
"""

from __future__ import annotations

import os
import sys

from pyvz.container import confine
from pyvz.linux import namespace, syscall
from pyvz.linux.mount import parse_mountinfo
from pyvz.linux.process import Pidfd


def main(argv: list[str]) -> int:
    """Do what the words say."""
    verb, pid, start, ids, what, target = argv
    try:
        with Pidfd(int(pid), int(start)) as init:
            if verb == "attach":
                attach(init, what, target, mapped=ids == "mapped")
            else:
                detach(init, what, target, mapped=ids == "mapped")
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return min(error.errno or 1, 255)
    return 0


def attach(init: Pidfd, source: str, target: str, *, mapped: bool) -> None:
    """Show the node's `source` at `target` inside, a directory that is made when missing."""
    userns = namespace.open_user(init.pid) if mapped else None
    tree = namespace.detached_tree(source, userns=userns, attributes=("nodev",))
    enter(init, mapped=mapped)
    os.makedirs(target, 0o755, exist_ok=True)
    flags = syscall.MOVE_MOUNT_F_EMPTY_PATH | syscall.MOVE_MOUNT_T_SYMLINKS
    syscall.move_mount(tree, "", syscall.AT_FDCWD, target, flags)


def detach(init: Pidfd, device: str, target: str, *, mapped: bool) -> None:
    """Unmount `target` when the disk `device` is mounted there; gone already is fine."""
    del target  # the guest may have moved it: the device decides
    table = f"/proc/{init.pid}/mountinfo"
    with open(table, encoding="utf-8", errors="surrogateescape") as file:
        entries = parse_mountinfo(file.read())
    major, _, minor = device.partition(":")
    places = [entry.target for entry in entries if entry.device == (int(major), int(minor))]
    enter(init, mapped=mapped)
    for place in reversed(places):
        syscall.umount2(place, syscall.UMOUNT_NOFOLLOW)


def enter(init: Pidfd, *, mapped: bool) -> None:
    """Enter the container's mounts, with the rights of its root."""
    syscall.prctl(syscall.PR_SET_DUMPABLE, 0)
    kinds = syscall.CLONE_NEWNS | (syscall.CLONE_NEWUSER if mapped else 0)
    syscall.setns(init.fd, kinds)
    if mapped:
        confine.become_root_inside()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
