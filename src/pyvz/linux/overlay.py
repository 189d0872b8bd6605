"""Overlays whose layers are idmapped: an overlay itself cannot be (it has no FS_ALLOW_IDMAP).

<source>/upper  <source>/work     the writable layer, as the storage driver keeps it
<source>/.lower  <source>/.rw     where the idmapped layers are attached, only while it is mounted
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pyvz.errors import MountError
from pyvz.linux import mount, namespace, syscall

OPTIONS = "redirect_dir=on,index=off,metacopy=off"
# Of the mount, and so of the one that takes its place.
_KEPT = {"ro": syscall.MS_RDONLY, "nosuid": syscall.MS_NOSUID, "noexec": syscall.MS_NOEXEC,
         "noatime": 1024, "nodiratime": 2048}  # fmt: skip  # MS_NOATIME, MS_NODIRATIME


def data(lower: Path, upper: Path, work: Path) -> str:
    """Return the options of mount(2) for an overlay; the paths have no comma, colon or backslash.

    index and metacopy tie an upper directory to one lower one by file handles: copies would fail.
    """
    return f"lowerdir={lower},upperdir={upper},workdir={work},{OPTIONS}"


def shift(target: str, userns: int, owner: tuple[int, int]) -> bool:
    """Mount the overlay at `target` anew with its layers idmapped into a user namespace.

    Returns whether its layers are idmapped now; what is no overlay of ours is left alone.
    owner: the node's (user, group) that are 0 in the namespace.  The kernel copies lower files up
    with the identity of who mounted the overlay, so that must be somebody whom the layers know.
    Raises OSError; then nothing may be mounted at `target`.
    """
    entry = mount.mount_at(target)
    if entry is None or entry.fstype != "overlay":
        return False
    given = dict(option.partition("=")[::2] for option in entry.super_options)
    source = Path(entry.source)
    if given.get("upperdir") != os.fspath(source / "upper"):
        return given.get("upperdir") == os.fspath(source / ".rw/upper")
    flags = syscall.MS_NODEV | sum(bit for word, bit in _KEPT.items() if word in entry.options)
    with _as_oserror(), contextlib.ExitStack() as stack:
        lower = stack.enter_context(_idmapped(given["lowerdir"], source / ".lower", userns))
        rw = stack.enter_context(_idmapped(entry.source, source / ".rw", userns))
        mount.umount(target)
        with _acting_as(*owner):
            options = data(lower, rw / "upper", rw / "work")
            mount.mount(entry.source, target, "overlay", flags=flags, data=options)
    return True


def clean(source: Path) -> None:
    """Take away what somebody who was killed in `shift` left attached.  Idempotent."""
    for name in (".lower", ".rw"):
        place = source / name
        if place.is_dir():
            mount.umount(place)
            place.rmdir()


@contextlib.contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except MountError as error:
        cause = error.__cause__
        code = cause.errno if isinstance(cause, OSError) else errno.EBUSY
        raise OSError(code, error.message) from error


@contextlib.contextmanager
def _idmapped(layer: str, place: Path, userns: int) -> Iterator[Path]:
    """Attach a layer, idmapped, at `place` for a while; an overlay keeps a copy of its own."""
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        tree = namespace.detached_tree(layer, userns=userns, recursive=False)
        try:
            syscall.move_mount(tree, "", syscall.AT_FDCWD, place)
        finally:
            os.close(tree)
        yield place
    finally:
        mount.umount(place)
        place.rmdir()


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Have this thread's file accesses be those of another one, with all our capabilities."""
    before = syscall.prctl(syscall.PR_GET_SECUREBITS)
    syscall.prctl(syscall.PR_SET_SECUREBITS, before | syscall.SECBIT_NO_SETUID_FIXUP)
    old_gid, old_uid = syscall.setfsgid(gid), syscall.setfsuid(uid)
    try:
        yield
    finally:
        syscall.setfsuid(old_uid)
        syscall.setfsgid(old_gid)
        syscall.prctl(syscall.PR_SET_SECUREBITS, before)
