"""The interface of storage drivers: the disk of one container, in its home directory.

A driver is a module of this folder with a class `Driver`; `load(name)` imports it by name and
`names()` scans the folder, so a new back end is one new file and no other file changes.

The life of a disk, drawn by what exists:

    absent --create/clone--> created --mount--> mounted
      ^                        |  ^                |
      +--------remove----------+  +-----umount-----+

Every step is idempotent (asked to go where it already is, it does nothing) and may be killed at
any moment: `create` and `clone` build beside the final name and rename as their last act, so
`present` never sees half a disk; `remove` renames away first, so a disk is whole or absent, and
takes the leftovers of all three with it.  The caller holds the environment's lease.

A driver owns only its own names below the home (`fs/`, `root.hdd/`, ...): ve.conf, scripts/ and
dump/ are the operations'.  Data on disk keep the ids that they have inside the container
(unshifted); the engine maps them when it mounts the tree into the container.

Whatever not every driver can do is a flag of `Capabilities` and a method that raises
`Unsupported` where the flag is down (`Extras`, from which every driver inherits).  Ask
the flags, never the driver's name.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol, cast

import pyvz.storage
from pyvz.errors import Busy, PrivateMissing, Unsupported
from pyvz.image.report import Report
from pyvz.linux import filesystem, loopdevice, mount, run
from pyvz.model.task import Progress
from pyvz.storage.streams import StreamSink, StreamSource

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
ROOT_DISK = "root.hdd"  # the directory, in the home, of the disk that is the container's root
LAYOUT_LINK = ".ve.layout"  # a symbolic link whose text is the layout's number, as vzctl makes it


Fill = Callable[[int, int], None]  # (descriptor of the image file, where the disk begins in it)


class Capabilities(NamedTuple):
    """What a driver can do at one place (a directory of the file system that holds the homes)."""

    snapshot: bool = False  # snapshots of a running container's disk
    snapshot_halts: bool = False  # of a mounted disk: only while the caller keeps it from changing
    reflink: bool = False  # clone shares blocks and takes no time
    grow_online: bool = False  # resize to more while mounted
    shrink: bool = False  # resize to less (while not mounted)
    discard: bool = False  # freed blocks go back to the node
    changed_blocks: bool = False  # changed() (with snapshot), image_changes() (with image)
    df_exact: bool = False  # statvfs inside shows the container's own size and use
    quota: bool = False  # a size is enforced; without it create and resize refuse any size
    inode_limit: bool = False  # limit_inodes() at any time, to any number
    block_device: bool = False  # devices() names a device of the disk's own (while mounted)
    compact: bool = False  # compact() gives freed space back
    check: bool = False  # check() finds (and repairs) damage
    linked_clone: bool = False  # linked_clone() makes a clone that shares all with its original
    mount_options: bool = False  # it has a file system of its own: see ManyDisks
    disks: bool = False  # several disks in one home: see `many_disks`
    served: bool = False  # a mounted disk lives by a program of the node: failed()
    moves_mounted: bool = False  # the home may be renamed while its disk is mounted
    image: bool = False  # a disk is one raw image: copy_image, image_file
    restore: bool = False  # restore_image(): a disk of content that the caller has
    streams: bool = False  # send_streams(), receive_streams()
    shot_images: bool = False  # snapshots are images like the disk: see storage/shots.py


class MountOptions(NamedTuple):
    """How a file system of the container's own is mounted (flag mount_options).

    words: its options.  quota: of users and groups; off takes all their limits away, None leaves
    that as it is.
    """

    words: tuple[str, ...] = ()
    quota: bool | None = None


class NewFileSystem(NamedTuple):
    """How a disk's file system is made.  kind: ext4 or xfs, None: the node decides.

    inodes: how many at least; None: as many as suit its size.
    """

    kind: str | None = None
    inodes: int | None = None


class DiskUsage(NamedTuple):
    """Space of a disk in bytes and its inodes, as `df` inside the container shows them.

    limited: it is the disk's own; else the disk takes what its pool has.
    """

    total: int
    used: int
    free: int
    inodes: int
    inodes_used: int
    limited: bool = True


class Extras(Protocol):
    """What not every driver can do: each method raises Unsupported until a driver has its own.

    disk: the name of the disk's directory in the home (`disks`), for drivers that have several.
    guid: of a snapshot, in braces as in DiskDescriptor.xml.  The caller holds the lease.
    """

    name: str
    pool_options: tuple[str, ...] = ()  # options of a pool that the driver understands

    def prepare(self, place: Path, options: Mapping[str, str]) -> None:
        """Make the existing directory `place` ready to be a pool; idempotent.

        Raises Unsupported when the driver cannot work there, saying why.
        """
        del place, options

    def release(self, place: Path) -> None:
        """Remove what the driver keeps in the pool `place` beside homes and nobody uses."""
        del place

    def adopt(self, home: Path) -> bool:
        """Make another driver's disk in `home` one of its own without copying; False: it cannot.

        Nobody uses it.  Raises StorageError (damaged), Unsupported.
        """
        del home
        return False

    def hand_over(self, home: Path, driver: str, progress: Progress) -> bool:
        """Make its disk one of another driver, with all snapshots; False: it cannot.

        Nobody uses it.  Raises StorageError, NoSpace, Cancelled: nothing has changed then.
        """
        del home, driver, progress
        return False

    def failed(self, home: Path) -> str:
        """Return why a mounted disk does not work any more; empty when it does.

        Flag: served.
        """
        del home
        return ""

    def snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Keep the disk as it is now under `guid`; it may be mounted (writers wait shortly).

        Flag: snapshot (and snapshot_halts: the caller sees to it that nothing is written).
        Raises AlreadyExists, NoSpace, Timeout.
        """
        raise self._cannot("make snapshots", home, guid, disk)

    def switch(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Make the disk what it was at snapshot `guid`, which stays; what is now is lost.

        Flag: snapshot.  Raises NotFound, AlreadyMounted, Busy.
        """
        raise self._cannot("go back to snapshots", home, guid, disk)

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Forget one snapshot; those made after it stay.  Flag: snapshot.  Raises NotFound."""
        raise self._cannot("delete snapshots", home, guid, disk)

    def mount_snapshot(self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Show a snapshot read-only at `target` (made when missing).  Flag: snapshot."""
        raise self._cannot("mount snapshots", home, guid, target, disk)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK
    ) -> None:
        """Take away what `mount_snapshot` did; not mounted: nothing happens.  Raises Busy."""
        raise self._cannot("unmount snapshots", home, guid, target, disk)

    def unlimit(self, home: Path) -> None:
        """Let the disk have what its pool has, whatever its size was; it may be mounted.

        Raises Unsupported (a disk that is an image has a size always).
        """
        raise self._cannot("be without a size", home)

    def limit_inodes(self, home: Path, count: int | None, *, disk: str = ROOT_DISK) -> None:
        """Have the disk hold about `count` files at most, never fewer; it may be mounted.

        None: as many as there is space for.

        Raises Unsupported (the number is fixed, or not the disk's own).
        """
        if count is not None:
            raise self._cannot("be given a number of inodes", home, count, disk)

    def compact(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Give freed space back to the node; returns how many bytes it got.  Flag: compact."""
        raise self._cannot("be compacted", home, disk)

    def check(self, home: Path, *, repair: bool = False, disk: str = ROOT_DISK) -> Report:
        """Check the unmounted disk: format and file system.  Flag: check.

        Raises AlreadyMounted, StorageError (not recognisable at all).
        """
        raise self._cannot("be checked", home, repair, disk)

    def changed(
        self, home: Path, since: str, until: str | None = None, *, disk: str = ROOT_DISK
    ) -> Sequence[tuple[int, int]]:
        """Return (offset, length) of what differs between the snapshots `since` and `until`.

        Bytes of the disk, in order, never less than what differs; until: None for the disk as it
        is now (writers wait).  Flags: changed_blocks and snapshot.  Raises NotFound.
        """
        raise self._cannot("list changed blocks", home, since, until, disk)

    def image_changes(self, old: Path, new: Path) -> Sequence[tuple[int, int]]:
        """Return (offset, length) of what differs between two files that `copy_image` made.

        As `changed`; bytes of the disk in `new`.  It may have grown: what `old` did not have
        counts as zeros before.  Flags: changed_blocks and image.  Raises Unsupported.
        """
        raise self._cannot("list changed blocks", old, new)

    def read_snapshot(
        self, home: Path, guid: str, *, disk: str = ROOT_DISK
    ) -> AbstractContextManager[tuple[Path, int, int]]:
        """Yield (file, offset, size): the disk as it was at a snapshot, to be read in that file.

        Holes of the file are zeros.  It must not be deleted meanwhile.  Flag: snapshot.
        """
        raise self._cannot("be read at a snapshot", home, guid, disk)

    def copy_image(self, home: Path, target: Path, *, disk: str = ROOT_DISK) -> tuple[int, int]:
        """Make the new file `target` a copy of the disk's image as it is at one moment.

        It may be mounted; writers wait.  Blocks are shared where the place can (`reflink`).
        Returns (offset, size) of the disk in the file.  Flag: image.  Raises NoSpace, Timeout.
        """
        raise self._cannot("be copied as an image", home, target, disk)

    def image_file(self, home: Path, *, disk: str = ROOT_DISK) -> Path:
        """Return the file below the home that takes the disk's writes.  Flag: image."""
        raise self._cannot("be an image", home, disk)

    def restore_image(
        self,
        home: Path,
        size: int,
        fill: Fill,
        *,
        disk: str = ROOT_DISK,
    ) -> None:
        """Make a disk of `size` bytes with content of the caller's: absent -> created.

        fill(fd, offset): writes the disk into the open sparse file, from `offset` on; what it
        raises undoes everything.  Flag: restore.
        """
        raise self._cannot("be restored from an image", home, size, fill, disk)

    def send_streams(self, home: Path) -> AbstractContextManager[StreamSource]:
        """Yield what writes the disk down, again and again, for `receive_streams` of another node.

        It may be mounted; nobody waits.  Flag: streams.
        """
        raise self._cannot("be written down as streams", home)

    def receive_streams(self, home: Path, size: int | None) -> AbstractContextManager[StreamSink]:
        """Yield what takes streams; when the block ends well: absent -> created.

        size: as `create`.  Flag: streams.
        """
        raise self._cannot("be made from streams", home, size)

    def forget_streams(self, home: Path) -> None:
        """Remove what a killed `send_streams` has left.  Idempotent."""
        del home

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Clone the created disk without copying: both share what they have, or it is refused.

        Flag: linked_clone.  Raises Unsupported (the new home is where nothing can be shared).
        """
        raise self._cannot("be cloned with a link", home, new_home, progress)

    def _cannot(self, what: str, *_arguments: object) -> Unsupported:
        return Unsupported(f"A disk of layout {self.name} cannot {what}")


class StorageDriver(Extras, Protocol):
    """One back end.  Objects hold no state: the home directory and the kernel are the truth.

    OSError may come out of any method; it is named at the border of the operations.
    """

    name: str
    layout: int  # the number behind .ve.layout

    def capabilities(self, place: Path) -> Capabilities:
        """Return what this driver can do with homes below the existing directory `place`."""

    def present(self, home: Path) -> bool:
        """Whether a whole disk of this driver is in `home` (created or mounted)."""

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Make the disk of `size` bytes in the existing directory `home`: absent -> created.

        source: an archive of a root file system to unpack into it; None leaves it empty.
        size: None = the driver's own default (a plain directory: no limit).
        Raises Unsupported (size without quota), NoSpace, StorageError, Cancelled (undone).
        """

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Mount the disk on `target` in this mount namespace: created -> mounted.

        `target` and its parents are made when missing.  Mounted there already: nothing happens.
        Raises MountError, PrivateMissing.
        """

    def umount(self, home: Path, target: Path) -> None:
        """Unmount `target` and detach whatever stood behind: mounted -> created; raises Busy."""

    def usage(self, home: Path) -> DiskUsage:
        """Return the space of a created or mounted disk; without `df_exact`: of its pool."""

    def resize(self, home: Path, size: int) -> None:
        """Make the disk `size` bytes large; raises Unsupported, InvalidState, NoSpace."""

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy the created (not mounted) disk of `home` to the existing directory `new_home`."""

    def remove(self, home: Path, progress: Progress) -> None:
        """Remove the disk and all leftovers of this driver: created -> absent.  Busy if mounted."""

    def devices(self, home: Path) -> Sequence[tuple[int, int]]:
        """Return (major, minor) of the block devices to which I/O limits of this disk apply."""


class ManyDisks(Protocol):
    """A driver that keeps several disks in one home, and lets each file system be chosen.

    disk: the name of a directory in the home; only ROOT_DISK is removed, cloned and found by
    the methods without it, which then take all disks of the home along.
    """

    def disks(self, home: Path) -> list[str]:
        """Return the names of the disks in the home, the root disk first."""

    def place(self, home: Path, *, disk: str = ROOT_DISK) -> Path:
        """Return the directory of a disk, which may not be there."""

    def size(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Return the size of the disk itself in bytes: what `resize` was asked for."""

    def snapshots(self, home: Path, *, disk: str = ROOT_DISK) -> Sequence[str]:
        """Return the guids of the snapshots that the disk has a part of."""

    def create(
        self,
        home: Path,
        *,
        size: int | None,
        source: Path | None,
        progress: Progress,
        disk: str = ROOT_DISK,
        made: NewFileSystem = NewFileSystem(),  # noqa: B008  a value
    ) -> None:
        """As StorageDriver.create."""

    def fstype(self, home: Path, *, disk: str = ROOT_DISK) -> str:
        """Return the kind of the file system on the disk."""

    def mount(
        self,
        home: Path,
        target: Path,
        *,
        readonly: bool = False,
        disk: str = ROOT_DISK,
        options: MountOptions = MountOptions(),  # noqa: B008  a value
    ) -> None:
        """As StorageDriver.mount."""

    def umount(self, home: Path, target: Path, *, disk: str = ROOT_DISK) -> None:
        """As StorageDriver.umount."""

    def usage(self, home: Path, *, disk: str = ROOT_DISK) -> DiskUsage:
        """As StorageDriver.usage."""

    def resize(self, home: Path, size: int, *, disk: str = ROOT_DISK) -> None:
        """As StorageDriver.resize."""

    def remove_disk(self, home: Path, disk: str) -> None:
        """Remove one disk, which is not the root disk; raises Busy, NotFound."""

    def devices(self, home: Path, *, disk: str | None = None) -> Sequence[tuple[int, int]]:
        """As StorageDriver.devices, of one disk or of all that are mounted."""


def limit(driver: StorageDriver, home: Path) -> int | None:
    """Return the size in bytes that the disk in `home` is held to; None: none of its own."""
    if not driver.capabilities(home).quota:
        return None
    found = driver.usage(home)
    return found.total if found.limited else None


def many_disks(driver: StorageDriver, home: Path) -> ManyDisks:
    """Return `driver` as one that has several disks in `home`; raises Unsupported."""
    if not driver.capabilities(home).disks:
        raise Unsupported(f"A container of layout {driver.name} has one disk only")
    return cast("ManyDisks", driver)


@functools.cache
def names() -> list[str]:
    """Return the names of all drivers: the modules of this folder that have a `Driver`."""
    modules = (module.name for module in pkgutil.iter_modules(pyvz.storage.__path__))
    return sorted(name for name in modules if hasattr(_module(name), "Driver"))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"pyvz.storage.{name}")


def load(name: str) -> StorageDriver:
    """Return the driver called `name`; raises Unsupported when there is none."""
    if not _NAME.fullmatch(name) or name not in names():
        raise Unsupported(
            f"There is no storage driver '{name}'", hint=f"Drivers: {', '.join(names())}."
        )
    return cast("StorageDriver", _module(name).Driver())


def why_no_images() -> str:
    """Return what this node lacks for disks that are images; empty when it can have them."""
    if not os.path.exists("/dev/loop-control"):
        return "there is no /dev/loop-control: the kernel has no loop devices"
    kind = "ext4" if filesystem.can_grow_ext4_online() else "xfs"
    path = run.ENVIRONMENT["PATH"]
    if shutil.which(f"mkfs.{kind}", path=path) is None:
        return f"mkfs.{kind} is not installed"
    return ""


def find(home: Path) -> StorageDriver:
    """Return the driver whose disk is in `home`; raises PrivateMissing when none is."""
    for name in names():
        driver = load(name)
        if driver.present(home):
            return driver
    raise PrivateMissing(f"There is no container disk in {home}")


def layout(home: Path) -> int | None:
    """Return the layout number that the home's `.ve.layout` names, or None without one."""
    try:
        text = os.fspath((home / LAYOUT_LINK).readlink())
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None


def check_same_file_system(home: Path, new_home: Path) -> None:
    """Raise Unsupported when no blocks can be shared between the two: they are apart."""
    if mount.holding_mount(home).device != mount.holding_mount(new_home).device:
        raise Unsupported(
            f"{new_home.parent} is on another file system than {home}: nothing can be shared",
            hint="Clone without a link, or in the same pool.",
        )


def check_unmounted(home: Path) -> None:
    """Raise Busy, naming the places, when something in `home` is mounted, there or elsewhere."""
    real = home.resolve()
    holder = mount.holding_mount(real)
    inside = Path(holder.root) / real.relative_to(holder.target)  # as its file system calls it
    places = [
        entry.target
        for entry in mount.mounts()
        if Path(entry.target).is_relative_to(real)
        or (entry.device == holder.device and Path(entry.root).is_relative_to(inside))
    ]
    places += [f"attached as {loop}" for loop in loopdevice.below(real)]
    if places:
        raise Busy(f"{home} is in use: it is mounted", details="\n".join(places[:10]))
