"""What the drivers share that keep a container's files as a tree of the node, not in an image."""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pyvz.errors import AlreadyMounted, MountError, PrivateMissing, Unsupported
from pyvz.linux import blockdevice, file, mount, syscall
from pyvz.model.task import Progress
from pyvz.storage import base


class Directory(base.Extras, Protocol):
    """A disk that is one directory of the home, named last when it is made, and has no size."""

    layout: int
    folder: str  # its name in the home
    mode: int  # of the directory

    @abstractmethod
    def present(self, home: Path) -> bool:
        """See StorageDriver."""

    @abstractmethod
    def fill(self, home: Path, new: Path, source: Path | None, progress: Progress) -> None:
        """Put into `new` what a new disk of `home` has."""

    @abstractmethod
    def copy(self, home: Path, new_home: Path, new: Path, progress: Progress) -> None:
        """Put into `new` what the disk of `home` has, for one in `new_home`."""

    @abstractmethod
    def no_size(self, place: Path) -> Unsupported:
        """Return why it cannot have a size in the directory `place`."""

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Build the directory beside and give it its name."""
        if size is not None:
            raise self.no_size(home)
        if self.present(home):
            return
        with self.built(home) as new:
            self.fill(home, new, source, progress)
            progress.check()

    def unlimit(self, home: Path) -> None:
        """Nothing: a directory without a quota has no size."""
        self.check_present(home)

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy the directory; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        self.check_present(home)
        with self.built(new_home) as new:
            progress.stage(f"Copying {home}")
            self.copy(home, new_home, new, progress)
            progress.check()

    def resize(self, home: Path, size: int) -> None:
        """Refuse: there is no size."""
        del size
        raise self.no_size(home)

    def usage(self, home: Path) -> base.DiskUsage:
        """Return the space of the file system that holds the home."""
        self.check_present(home)
        return usage(home)

    def devices(self, home: Path) -> tuple[tuple[int, int], ...]:
        """Return the disk under that file system; empty where there is none."""
        return tuple(blockdevice.disks_of(home))

    def check_present(self, home: Path) -> None:
        """Raise PrivateMissing when there is no disk in `home`."""
        if not self.present(home):
            raise PrivateMissing(f"There is no container disk in {home}")

    @contextlib.contextmanager
    def built(self, home: Path) -> Iterator[Path]:
        """Yield the empty directory that becomes the disk when the block ends well."""
        new = empty(home / f"{self.folder}.new", self.mode)
        try:
            yield new
            mark(home, self.layout)
            new.rename(home / self.folder)
        except BaseException:
            file.remove_tree(new)
            raise


def empty(directory: Path, mode: int) -> Path:
    """Return `directory` made anew; what an interrupted step left there is removed."""
    file.remove_tree(directory)
    directory.mkdir(mode=mode)
    return directory


def check_free(target: Path) -> None:
    """Raise AlreadyMounted when something is mounted at `target`."""
    if target.exists() and mount.is_mount_point(target):
        raise AlreadyMounted(f"Something is mounted on {target} already")


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
        limited=False,
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
