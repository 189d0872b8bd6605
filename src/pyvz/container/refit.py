"""Gives running containers the files of the lxcfs that serves now, instead of a dead one's.

    python -m pyvz.container.refit DIRECTORY|- PID:START:mapped|plain:all|mended ...

A program of its own, because only a process with one thread may enter a user and a mount
namespace; and a child for each container, because inside a hostile tree anything may hang.
The children work side by side, so that one that hangs keeps few others waiting.
DIRECTORY: where lxcfs is mounted; "-": take what is dead away, so that the kernel's own files
show.  all: attach also what is missing; mended: replace only (namespaces of services inside).

A file is replaced without a moment in which the kernel's shows: the new one is mounted beneath
the dead one, which is then unmounted (Linux 6.5).  An older kernel has that moment.

Prints "PID reason" for each that could not be served; the exit status is always 0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyvz.container import attach, figures
from pyvz.linux import syscall
from pyvz.linux.mount import MountEntry, parse_mountinfo
from pyvz.linux.process import Pidfd

DEADLINE = 15.0  # seconds for one container
AT_ONCE = 32  # containers that are served at the same time
_FAILED = 125
_DELETED = "//deleted"  # mountinfo, once somebody has looked for the file after its lxcfs died
_ATTACH = syscall.MOVE_MOUNT_F_EMPTY_PATH | syscall.MOVE_MOUNT_T_SYMLINKS


class Subject(NamedTuple):
    """A process whose mount namespace is to be served."""

    pid: int
    started: int
    mapped: bool
    whole: bool

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Return what a word of the command line means."""
        pid, started, ids, scope = text.split(":")
        return cls(int(pid), int(started), ids == "mapped", scope == "all")

    def __str__(self) -> str:
        ids, scope = ("plain", "mapped")[self.mapped], ("mended", "all")[self.whole]
        return f"{self.pid}:{self.started}:{ids}:{scope}"


class Change(NamedTuple):
    """One mount to change: at `target` the file `name` of lxcfs.  over: a dead one lies there."""

    target: str
    name: str
    over: bool


def changes(
    table: Sequence[MountEntry],
    device: tuple[int, int] | None,
    names: Sequence[str],
    *,
    whole: bool,
) -> list[Change]:
    """Return what is to be changed in a mount namespace.

    device: of the lxcfs that serves, None when there is none.  names: the files that it has.
    """
    top = {entry.target: entry for entry in table}  # a later one lies on top
    found = [
        Change(target, entry.root.removesuffix(_DELETED), over=True)
        for target, entry in top.items()
        if entry.fstype == figures.FSTYPE and entry.device != device
    ]
    if not whole or device is None:
        return found
    places = [target for target, entry in top.items() if entry.fstype in ("proc", "sysfs")]
    missing = [
        name
        for name in names
        if not (name in top and top[name].fstype == figures.FSTYPE)
        and any(place in ("/proc", "/sys") and name.startswith(place + "/") for place in places)
    ]
    return found + [Change(name, name, over=False) for name in missing]


def main(argv: list[str]) -> int:
    """Serve everybody named, some at a time."""
    files: dict[str, int] = {}
    device = None
    if argv[0] != "-":
        files = figures.open_files(Path(argv[0]))
        found = os.fstat(next(iter(files.values())))
        device = (os.major(found.st_dev), os.minor(found.st_dev))
    subjects = [Subject.parse(word) for word in argv[1:]]
    for first in range(0, len(subjects), AT_ONCE):
        children = {}
        for subject in subjects[first : first + AT_ONCE]:
            try:
                child = _serve(subject, files, device)
            except OSError as error:
                _say(subject, error.strerror or str(error))
                continue
            if child:
                children[child] = subject
        _reap(children)
    return 0


def _say(subject: Subject, reason: str) -> None:
    sys.stdout.write(f"{subject.pid} {reason}\n")


def _serve(subject: Subject, files: Mapping[str, int], device: tuple[int, int] | None) -> int:
    """Begin to serve one; returns the pid of the child that does it, 0 for nothing to do."""
    try:
        process = Pidfd(subject.pid, subject.started)
    except ProcessLookupError:  # it has ended
        return 0
    with process:
        wanted = changes(_table(subject.pid), device, list(files), whole=subject.whole)
        if not wanted:
            return 0
        trees = {
            change: figures.detached(files[change.name])
            for change in wanted
            if change.name in files
        }
        try:
            child = os.fork()
            if child == 0:
                _child(process, subject, wanted, trees)
            return child
        finally:
            for fd in trees.values():
                os.close(fd)


def _table(pid: int) -> list[MountEntry]:
    text = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return parse_mountinfo(text)


def _child(
    process: Pidfd, subject: Subject, wanted: Sequence[Change], trees: Mapping[Change, int]
) -> None:
    code = _FAILED
    try:
        attach.enter(process, mapped=subject.mapped)
        code = 0
        for change in wanted:
            try:
                _apply(change, trees.get(change))
            except OSError as error:
                code = error.errno or _FAILED
    except OSError as error:
        code = error.errno or _FAILED
    finally:
        os._exit(code)


def _apply(change: Change, tree: int | None) -> None:
    unmount = syscall.MNT_DETACH | syscall.UMOUNT_NOFOLLOW
    if not change.over:
        if tree is not None and os.path.lexists(change.target):
            syscall.move_mount(tree, "", syscall.AT_FDCWD, change.target, _ATTACH)
        return
    if tree is None:  # no lxcfs, or one that has no such file
        syscall.umount2(change.target, unmount)
        return
    try:
        beneath = _ATTACH | syscall.MOVE_MOUNT_BENEATH
        syscall.move_mount(tree, "", syscall.AT_FDCWD, change.target, beneath)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        syscall.umount2(change.target, unmount)
        syscall.move_mount(tree, "", syscall.AT_FDCWD, change.target, _ATTACH)
        return
    syscall.umount2(change.target, unmount)


def _reap(children: dict[int, Subject]) -> None:
    """Wait for the children, at most DEADLINE seconds, and tell who failed."""
    end = time.monotonic() + DEADLINE
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            subject = children.pop(pid)
            if code:
                _say(subject, os.strerror(code) if 0 < code < _FAILED else "it failed")
        elif time.monotonic() > end:
            break
        else:
            time.sleep(0.002)
    for pid, subject in children.items():
        _say(subject, f"nothing happened for {DEADLINE:.0f} seconds")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
