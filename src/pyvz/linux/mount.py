"""Mounts of this process's mount namespace: the table, and making and taking away single ones."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Busy, MountError
from pyvz.linux import syscall

_ESCAPE = re.compile(r"\\([0-7]{3})")
MAX_HOLDERS = 10


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo; see proc_pid_mountinfo(5).

    device: (major, minor).  root: the directory of the file system that forms the mount's root.
    propagation: its optional fields ("shared:3", "master:2").
    """

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether mounts made below it also appear in its peers."""
        return any(field.startswith("shared:") for field in self.propagation)


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Return the entries of a mountinfo file, in its order (a later one lies on top)."""
    return [_entry(line) for line in text.split("\n") if line]


def _entry(line: str) -> MountEntry:
    words = line.split(" ")
    # 36 35 98:0 /root /target options [optional fields ...] - fstype source super-options
    dash = words.index("-", 6)
    major, _, minor = words[2].partition(":")
    return MountEntry(
        int(words[0]),
        int(words[1]),
        (int(major), int(minor)),
        _unescape(words[3]),
        _unescape(words[4]),
        tuple(words[5].split(",")),
        tuple(words[6:dash]),
        _unescape(words[dash + 1]),
        _unescape(words[dash + 2]),
        tuple(words[dash + 3].split(",")) if len(words) > dash + 3 else (),
    )


def _unescape(text: str) -> str:
    # seq_path() writes blanks, tabs, newlines and backslashes as three octal digits.
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text) if "\\" in text else text


def _escape(path: str) -> str:
    return path.translate({ord(char): f"\\{ord(char):03o}" for char in " \t\n\\"})


def mounts(under: str | Path | None = None, *, pid: int | None = None) -> list[MountEntry]:
    """Return the mounts at and below UNDER (all without it), of this or another process.

    UNDER is taken as the kernel writes it: absolute, without symbolic links.
    Raises ProcessLookupError or FileNotFoundError when PID is gone.
    """
    table = f"/proc/{'self' if pid is None else pid}/mountinfo"
    with open(table, encoding="utf-8", errors="surrogateescape") as file:
        entries = parse_mountinfo(file.read())
    if under is None or os.fspath(under) == "/":
        return entries
    top = os.fspath(under).rstrip("/")
    return [entry for entry in entries if entry.target == top or entry.target.startswith(top + "/")]


def is_mount_point(path: str | Path) -> bool:
    """Whether something is mounted exactly at PATH (also a bind of the same file system)."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.realpath(path) in mount_points()


def mount_points() -> frozenset[str]:
    """Return where something is mounted, as the kernel writes it: for many questions at once."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return frozenset(_unescape(line.split(" ", 5)[4]) for line in file)


def mount_at(path: str | Path) -> MountEntry | None:
    """Return the topmost mount exactly at PATH, None when nothing is mounted there."""
    real = os.path.realpath(path)
    return next((entry for entry in reversed(mounts(real)) if entry.target == real), None)


def holding_mount(path: str | Path) -> MountEntry:
    """Return the mount that PATH lies in; raise FileNotFoundError when there is no such path."""
    real = os.path.realpath(path, strict=True)
    best: MountEntry | None = None
    for entry in mounts():
        top = entry.target.rstrip("/")
        inside = real == entry.target or real.startswith(top + "/")
        if inside and (best is None or len(entry.target) >= len(best.target)):
            best = entry
    if best is None:
        raise MountError(f"{path} lies in no mount that this process can see")
    return best


def mount(
    source: str | Path, target: str | Path, fstype: str, *, flags: int = 0, data: str | None = None
) -> None:
    """Mount a file system; flags are MS_* of linux/syscall.py.  Raises MountError."""
    try:
        syscall.mount(source, target, fstype, flags, data)
    except OSError as error:
        raise MountError(
            f"{source} could not be mounted at {target} as {fstype}: {_why(error)}"
        ) from error


def bind(
    source: str | Path, target: str | Path, *, recursive: bool = False, readonly: bool = False
) -> None:
    """Make SOURCE visible at TARGET too.  Raises MountError; then nothing stays mounted."""
    flags = syscall.MS_BIND | (syscall.MS_REC if recursive else 0)
    try:
        syscall.mount(source, target, None, flags, None)
    except OSError as error:
        raise MountError(f"{source} could not be bound to {target}: {_why(error)}") from error
    if readonly:
        try:
            set_readonly(target, recursive=recursive)
        except MountError:
            umount(target, recursive=recursive)
            raise


def set_readonly(target: str | Path, *, recursive: bool = False, readonly: bool = True) -> None:
    """Make one mount (with `recursive` all below it too) read-only or writable again.

    Only the mount changes, not the file system: mount_setattr(2).  Raises MountError.
    """
    bit = syscall.MOUNT_ATTR_RDONLY
    attr = syscall.MountAttr(set=bit) if readonly else syscall.MountAttr(clear=bit)
    flags = syscall.AT_RECURSIVE if recursive else 0
    try:
        syscall.mount_setattr(syscall.AT_FDCWD, target, attr, flags)
    except OSError as error:
        raise MountError(
            f"{target} could not be made {'read-only' if readonly else 'writable'}: {_why(error)}"
        ) from error


def make_shared(path: str | Path) -> None:
    """Make PATH a mount of its own whose mounts propagate.  Idempotent.  Raises MountError.

    Containers receive a slave copy of it, so that what is unmounted here disappears there.
    """
    entry = mount_at(path)
    if entry is None:
        bind(path, path, recursive=True)
    elif entry.shared:
        return
    _propagation(path, syscall.MS_SHARED)


def make_private(path: str | Path, *, recursive: bool = False) -> None:
    """Stop the mount at PATH from propagating either way.  Raises MountError."""
    _propagation(path, syscall.MS_PRIVATE | (syscall.MS_REC if recursive else 0))


def _propagation(path: str | Path, flags: int) -> None:
    try:
        syscall.mount(None, path, None, flags, None)
    except OSError as error:
        raise MountError(
            f"the propagation of {path} could not be changed: {_why(error)}"
        ) from error


def umount(
    target: str | Path, *, timeout: float = 0.0, recursive: bool = False, lazy: bool = False
) -> None:
    """Take away what is mounted at TARGET (all layers; with `recursive` all below it first).

    Idempotent: nothing mounted there is fine.  Strict: raises Busy, naming the holders, when it
    is still in use after `timeout` seconds.  `lazy` (MNT_DETACH) is for crash recovery only.
    """
    deadline = time.monotonic() + timeout
    while True:
        entries = _stack(target, recursive=recursive)
        if not entries:
            return
        try:
            for entry in reversed(entries):
                _umount_one(entry.target, lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise MountError(f"{target} could not be unmounted: {_why(error)}") from error
            if time.monotonic() >= deadline:
                raise _busy(target) from error
            time.sleep(0.05)


def _why(error: OSError) -> str:
    return os.strerror(error.errno or 0)  # without the name of the call, which linux/syscall adds


def _stack(target: str | Path, *, recursive: bool) -> list[MountEntry]:
    # The parent must exist; the target itself may be a dangling mount (a dead FUSE server), so
    # only the parent is resolved.
    parent, name = os.path.split(os.path.abspath(target))
    real = os.path.join(os.path.realpath(parent), name) if name else "/"
    entries = mounts(real)
    return entries if recursive else [entry for entry in entries if entry.target == real]


def _umount_one(target: str, *, lazy: bool) -> None:
    flags = syscall.UMOUNT_NOFOLLOW | (syscall.MNT_DETACH if lazy else 0)
    try:
        syscall.umount2(target, flags)
    except OSError as error:
        # EINVAL: not a mount point (any more); ENOENT: the place itself is gone.
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def _busy(target: str | Path) -> Busy:
    lines = [f"{name} (pid {pid}) uses {what}" for pid, name, what in holders(target)]
    lines += [f"mounted below it: {entry.target}" for entry in _below(target)[:MAX_HOLDERS]]
    return Busy(
        f"{target} is in use and cannot be unmounted",
        details="\n".join(lines),
        hint="" if lines else "A process in another mount namespace may hold it.",
    )


def _below(target: str | Path) -> list[MountEntry]:
    real = os.path.realpath(target)
    return [entry for entry in mounts(real) if entry.target != real]


def holders(target: str | Path) -> list[tuple[int, str, str]]:
    """Return (pid, program, path) of processes with a file or directory open below TARGET.

    Found by /proc/*/{cwd,root,exe,fd}; at most MAX_HOLDERS.
    """
    top = os.path.realpath(target).rstrip("/")
    found: list[tuple[int, str, str]] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and len(found) < MAX_HOLDERS:
            used = _used(int(entry), top)
            if used is not None:
                found.append((int(entry), _program(int(entry)), used))
    return found


def _used(pid: int, top: str) -> str | None:
    links = [f"/proc/{pid}/{name}" for name in ("cwd", "root", "exe")]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            path = os.readlink(link)
            if path == top or path.startswith(top + "/"):
                return path
    return None


def _program(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().strip()
    return "?"
