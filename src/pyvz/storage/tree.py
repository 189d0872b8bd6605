"""What the drivers share that keep a container's files as a tree of the node, not in an image."""

from __future__ import annotations

import os
from pathlib import Path

from pyvz.errors import AlreadyMounted, MountError
from pyvz.linux import mount, syscall
from pyvz.storage import base


def bind(source: Path, target: Path, *, readonly: bool) -> None:
    """Show `source` at `target`, which is made when missing; there already: nothing happens.

    Without device files: a node that the guest makes must not open a device anywhere.
    Raises MountError, AlreadyMounted (the other way).
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mount.is_mount_point(target):
        if not target.samefile(source):
            raise MountError(f"Something else is mounted on {target}")
        check_mode(target, readonly=readonly)
        return
    mount.bind(source, target)
    restrict(target, readonly=readonly)


def restrict(target: Path, *, readonly: bool) -> None:
    """Forbid device files (and writing) on the new mount; it is taken away when that fails."""
    bits = syscall.MOUNT_ATTR_NODEV | (syscall.MOUNT_ATTR_RDONLY if readonly else 0)
    try:
        syscall.mount_setattr(syscall.AT_FDCWD, target, syscall.MountAttr(set=bits), 0)
    except OSError as error:
        mount.umount(target)
        raise MountError(f"{target} could not be mounted: {error.strerror}") from error


def check_mode(target: Path, *, readonly: bool) -> None:
    """Raise AlreadyMounted when `target` is mounted the other way."""
    if bool(os.statvfs(target).f_flag & os.ST_RDONLY) != readonly:
        is_ = "read-write" if readonly else "read-only"
        raise AlreadyMounted(f"{target} is mounted {is_} already")


def usage(place: Path) -> base.DiskUsage:
    """Return the space of the file system that holds `place`."""
    space = os.statvfs(place)
    block = space.f_frsize
    return base.DiskUsage(
        total=space.f_blocks * block,
        used=(space.f_blocks - space.f_bfree) * block,
        free=space.f_bavail * block,
        inodes=space.f_files,
        inodes_used=space.f_files - space.f_ffree,
    )


def mark(home: Path, layout: int) -> None:
    """Write which driver's disk is in `home`."""
    link = home / base.LAYOUT_LINK
    link.unlink(missing_ok=True)
    link.symlink_to(str(layout))


def unmark(home: Path, layout: int) -> None:
    """Take the mark of this driver away; that of another stays."""
    if base.layout(home) == layout:
        (home / base.LAYOUT_LINK).unlink()
