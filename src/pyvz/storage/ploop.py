"""ploop: the container's disk is an image in ploop's identity form (OpenVZ layout 5).

    <home>/.ve.layout -> 5
    <home>/root.hdd/               the root disk (storage/ploopdisk.py); other disks beside it
    <home>/templates -> root.hdd/templates
    <home>/root.hdd.new/           being created or cloned; never mounted in the tree
    <home>/root.hdd.gone/          being removed

Nothing of it outlives its user: a disk that is being filled is mounted nowhere in the tree, and
devices clear themselves.  So what a kill -9 leaves is files, and at most one mount of the disk at
the container's root, of which the operations know.

The file system inside is ext4 as in the original, unless this node cannot grow ext4 while it is
mounted (no CAP_SYS_RESOURCE): then xfs, which can only grow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from pyvz.errors import (
    AlreadyMounted,
    BadValue,
    Busy,
    InvalidState,
    MountError,
    StorageError,
    Unsupported,
    VZError,
)
from pyvz.image import descriptor, identity
from pyvz.image import disk as format_
from pyvz.image.disk import Descriptor
from pyvz.image.report import Report
from pyvz.linux import file, filesystem, loopdevice, mount
from pyvz.model.task import NoProgress, Progress
from pyvz.storage import (
    base,
    diskname,
    golden,
    newfilesystem,
    ploopcopy,
    ploopdisk,
    ploopsize,
    qcow2stack,
    tree,
)
from pyvz.storage.base import ROOT_DISK
from pyvz.storage.ploopcopy import TEMPLATES
from pyvz.storage.ploopdisk import Disk
from pyvz.storage.ploopimages import Images

log = logging.getLogger(__name__)

DEFAULT_SIZE: Final = 10 << 30  # DISKSPACE of the original's samples


class Driver(Images):
    """See `pyvz.storage.base.StorageDriver`, `Extras` and `ManyDisks`."""

    name = "ploop"
    layout = 5

    def capabilities(self, place: Path) -> base.Capabilities:
        """What images can do; blocks are shared where the pool's file system can."""
        fstype = newfilesystem.default()
        shares = golden.can_share(place)
        return base.Capabilities(
            snapshot=True,
            reflink=shares,
            grow_online=True,
            shrink=fstype == "ext4",
            discard=True,
            changed_blocks=shares,
            df_exact=True,
            quota=True,
            block_device=True,
            compact=True,
            check=True,
            linked_clone=shares,
            mount_options=True,
            disks=True,
            moves_mounted=True,
            image=True,
            restore=True,
            shot_images=True,
        )

    def release(self, place: Path) -> None:
        """Remove the golden images that are kept in the pool itself."""
        if (place / golden.FOLDER).is_dir():
            golden.forget(place / golden.FOLDER)

    def present(self, home: Path) -> bool:
        """Whether root.hdd/ is there with its descriptor, and no qcow2 image stands on it."""
        return Disk(home / ROOT_DISK).exists and not (home / "qcow2" / qcow2stack.FILE).exists()

    def disks(self, home: Path) -> list[str]:
        """Return the directories in the home that are disks, the root disk first."""
        found = [name for name in diskname.candidates(home) if Disk(home / name).exists]
        return sorted(found, key=lambda name: (name != ROOT_DISK, name))

    def place(self, home: Path, *, disk: str = ROOT_DISK) -> Path:
        """Return the directory of a disk."""
        return home / diskname.checked(disk)

    def create(
        self,
        home: Path,
        *,
        size: int | None,
        source: Path | None,
        progress: Progress,
        disk: str = ROOT_DISK,
        made: base.NewFileSystem = base.NewFileSystem(),  # noqa: B008  a value
    ) -> None:
        """Clone the golden image of `source`, or make a new image, and give it its name."""
        if Disk(home / diskname.checked(disk)).exists:
            return
        wanted = size or DEFAULT_SIZE
        kind = newfilesystem.kind(made.kind, wanted)
        inodes = made.inodes if kind == "ext4" else None  # xfs makes them as they are needed
        new = _empty(home / f"{disk}.new")
        try:
            image = new / format_.BASE_FILE
            if source is not None and inodes is None and golden.can_share(home):
                self._clone_golden(image, wanted, kind, (home, source, progress))
            else:
                golden.build(image, wanted, (kind, inodes), source, progress)
            descriptor.save(new / descriptor.NAME, Descriptor(identity.size(image)))
            progress.check()
            self._name(home, new, disk)
        except BaseException:
            _discard(new)
            raise

    def mount(
        self,
        home: Path,
        target: Path,
        *,
        readonly: bool = False,
        disk: str = ROOT_DISK,
        options: base.MountOptions = base.MountOptions(),  # noqa: B008  a value
    ) -> None:
        """Attach the top image and mount it, without device files."""
        found = self._disk(home, disk)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with found.locked():
            if _is_there(found, target, readonly=readonly):
                return
            found.check_idle()
            found.sweep()
            ploopdisk.mount_image(found.top(), target, options, readonly=readonly)

    def umount(self, home: Path, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Unmount and wait until the device is gone."""
        found = Disk(home / diskname.checked(disk))
        if not found.exists:
            mount.umount(target)
            return
        with found.locked():
            ploopdisk.umount(found.top(), target)

    def usage(self, home: Path, *, disk: str = ROOT_DISK) -> base.DiskUsage:
        """Return what df shows inside; of a disk that is not mounted, what its superblock says."""
        found = self._disk(home, disk)
        for entry in found.mounted():
            with contextlib.suppress(OSError):
                return _usage(filesystem.space_of(entry.target))
        part = ploopdisk.part_of(found.top())
        return _usage(filesystem.space_at(found.top(), part.offset))

    def size(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Return what the descriptor says."""
        return self._disk(home, disk).descriptor().disk_size

    def resize(self, home: Path, size: int, *, disk: str = ROOT_DISK) -> None:
        """Grow (also while mounted) or shrink the image and the file system in it."""
        found = self._disk(home, disk)
        with found.locked():
            found.sweep()
            image = found.top()
            now = identity.size(image)
            if size <= 0:
                raise BadValue(f"A disk cannot have {size} bytes")
            if size < now - ploopsize.SPARE:
                ploopsize.shrink(found, image, size)
            else:
                ploopsize.grow(found, image, max(size, now))
            found.save(_with_size(found.descriptor(), identity.size(image)))

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy every disk with its snapshots; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        self._disk(home, ROOT_DISK)
        # The root disk last: with its name the home has a whole disk.
        for name in reversed(self.disks(home)):
            found = Disk(home / name)
            new = _empty(new_home / f"{name}.new")
            try:
                with found.locked():
                    found.check_idle()
                    progress.stage(f"Copying {found.path}")
                    progress.check()
                    ploopcopy.copy_disk(found, new, progress)
                self._name(new_home, new, name)
            except BaseException:
                _discard(new)
                for made in self.disks(new_home):
                    self._remove(new_home, made)
                raise

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Reflink every image: neither needs the other on."""
        if not golden.can_share(new_home):
            raise self._cannot("share blocks there", new_home)
        base.check_same_file_system(home, new_home)
        self.clone(home, new_home, progress)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename each disk away, then remove it; leftovers of interrupted steps go too."""
        base.check_unmounted(home)
        progress.check()
        for name in self.disks(home):
            self._remove(home, name)
        for entry in list(os.scandir(home)):
            if diskname.is_leftover(entry.name):
                file.remove_tree(entry.path)
        link = home / TEMPLATES
        if link.is_symlink() and os.fspath(link.readlink()) == f"{ROOT_DISK}/{TEMPLATES}":
            link.unlink()
        if base.layout(home) == self.layout:
            (home / base.LAYOUT_LINK).unlink()

    def remove_disk(self, home: Path, disk: str) -> None:
        """Remove one disk beside the root disk; raises Busy."""
        if disk == ROOT_DISK:
            raise InvalidState("The root disk goes with its container only")
        found = self._disk(home, disk)
        with found.locked():
            found.check_idle()
        self._remove(home, disk)

    def devices(self, home: Path, *, disk: str | None = None) -> Sequence[tuple[int, int]]:
        """Return the loop devices of the disks that are mounted."""
        names = self.disks(home) if disk is None else [diskname.checked(disk)]
        loops = [loop for name in names for loop in Disk(home / name).loops()]
        return tuple((loop.major, loop.minor) for loop in loops)

    # -- Extras

    def snapshots(self, home: Path, *, disk: str = ROOT_DISK) -> list[str]:
        """Return those that the descriptor names."""
        d = self._disk(home, disk).descriptor()
        return [shot.guid for shot in d.snapshots if shot.guid != d.top]

    def snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Reflink the top image (a copy where there is no reflink), frozen if it is mounted."""
        found = self._disk(home, disk)
        with found.locked(), ploopdisk.still(found):
            found.keep(guid)

    def switch(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Clone the snapshot's image to a new top; the descriptor commits it."""
        found = self._disk(home, disk)
        with found.locked():
            found.check_idle()
            found.sweep()
            old = found.descriptor()
            before = found.top()
            name = f"{format_.BASE_FILE}.{{{uuid4()}}}"  # as the original names new tops
            new = old.switched(guid, name)
            ploopdisk.copy(found.image(guid), found.path / name, NoProgress())
            try:
                identity.clear_in_use(found.path / name)
                ploopsize.grow_image(found.path / name, old.disk_size)
                found.save(new)
            except BaseException:
                (found.path / name).unlink()
                raise
            before.unlink()

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Take it out of the descriptor, which commits it, then remove its image."""
        found = self._disk(home, disk)
        with found.locked():
            image = found.image(guid)
            new = found.descriptor().without_snapshot(guid)
            if loopdevice.find(image):
                raise Busy(f"The snapshot {guid} is mounted", hint="Unmount it first.")
            found.save(new)
            image.unlink()

    def mount_snapshot(self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Attach the snapshot's image read-only and mount it."""
        found = self._disk(home, disk)
        image = found.image(guid)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with found.locked():
            if mount.is_mount_point(target):
                raise AlreadyMounted(f"Something is mounted on {target} already")
            ploopdisk.mount_readonly(image, target)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK
    ) -> None:
        """Unmount and wait until the device is gone."""
        found = self._disk(home, disk)
        image = found.image(guid)
        mount.umount(target)
        ploopdisk.wait_detached(image)

    def fstype(self, home: Path, *, disk: str = ROOT_DISK) -> str:
        """Return the kind of the file system on the disk; raises StorageError."""
        found = ploopdisk.part_of(self._disk(home, disk).top()).kind
        if found is None:
            raise StorageError(f"There is no file system of a known kind on {home / disk}")
        return found

    def limit_inodes(self, home: Path, count: int | None, *, disk: str = ROOT_DISK) -> None:
        """Limit those of an xfs; an ext4 has what it was made with."""
        kind = self.fstype(home, disk=disk)
        if kind != "xfs":
            now = self.usage(home, disk=disk).inodes
            if now == count:
                return
            raise Unsupported(
                f"The number of inodes of an {kind} cannot be changed: it has {now}",
                hint="It can be given when a container is created, and grows with the disk.",
            )
        found = self._disk(home, disk)
        with found.locked(), ploopdisk.opened(found) as mounted:
            filesystem.limit_inodes(mounted, count)

    def compact(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Trim the file system; what counts is by how much the file became smaller."""
        found = self._disk(home, disk)
        with found.locked():
            image = found.top()
            with ploopdisk.opened(found) as mounted:
                # What was deleted is free for ext4's trim when its transaction is committed.
                filesystem.sync(mounted)
                before = image.stat().st_blocks
                filesystem.trim(mounted)
                after = ploopsize.settled(image)
            return max(0, before - after) * 512

    def check(self, home: Path, *, repair: bool = False, disk: str = ROOT_DISK) -> Report:
        """Check the format of every image and the file system of the top."""
        found = self._disk(home, disk)
        with found.locked():
            found.check_idle()
            files = [found.path / image.file for image in found.descriptor().images]
            reports = [identity.check(each, repair=repair) for each in files]
            problems = [error for report in reports for error in report.errors]
            if not problems and not _check_filesystem(found.top(), repair=repair):
                problems.append(f"{found.top()}: the file system is damaged")
            return Report(
                tuple(problems),
                tuple(leak for report in reports for leak in report.leaks),
                tuple(done for report in reports for done in report.repaired),
                in_use=any(report.in_use for report in reports),
            )

    def restore_image(
        self, home: Path, size: int, fill: base.Fill, *, disk: str = ROOT_DISK
    ) -> None:
        """Fill a new image beside, then give it its name."""
        new = _empty(home / f"{diskname.checked(disk)}.new")
        try:
            ploopcopy.fill_new(new, size, fill)
            self._name(home, new, disk)
        except BaseException:
            _discard(new)
            raise

    # -- steps

    def _clone_golden(
        self, image: Path, size: int, kind: str, what: tuple[Path, Path, Progress]
    ) -> None:
        home, source, progress = what
        with golden.image(home, source, size, kind, progress) as original:
            golden.clone(original, image, size)

    def _name(self, home: Path, new: Path, disk: str) -> None:
        """Make `new` the disk: the last act of create and clone."""
        if disk == ROOT_DISK:
            (new / TEMPLATES).mkdir(mode=0o755, exist_ok=True)
            for link, text in (
                (home / base.LAYOUT_LINK, str(self.layout)),
                (home / TEMPLATES, f"{ROOT_DISK}/{TEMPLATES}"),
            ):
                if link.is_symlink() or not link.exists():
                    link.unlink(missing_ok=True)
                    link.symlink_to(text)
        new.rename(home / disk)
        file.fsync_directory(home)

    def _remove(self, home: Path, disk: str) -> None:
        gone = home / f"{disk}.gone"
        file.remove_tree(gone)
        (home / disk).rename(gone)
        file.remove_tree(gone)


def _empty(directory: Path) -> Path:
    """Return `directory` made anew; what an interrupted step left there is removed."""
    file.remove_tree(directory)
    directory.mkdir(mode=0o700)
    return directory


def _discard(new: Path) -> None:
    """Remove what a failed step made; its error is what matters."""
    with contextlib.suppress(VZError, OSError):
        file.remove_tree(new)


def _is_there(found: Disk, target: Path, *, readonly: bool) -> bool:
    """Whether the disk is mounted at `target` as asked; raises when that place is taken."""
    entry = mount.mount_at(target)
    if entry is None:
        return False
    if entry.device not in {(loop.major, loop.minor) for loop in found.loops()}:
        raise MountError(f"Something else is mounted on {target}")
    tree.check_mode(target, readonly=readonly)
    return True


def _usage(space: filesystem.Space) -> base.DiskUsage:
    return base.DiskUsage(*space[:5])


def _with_size(old: Descriptor, size: int) -> Descriptor:
    return dataclasses.replace(old, disk_size=size)


def _check_filesystem(image: Path, *, repair: bool) -> bool:
    with ploopdisk.attached(image, readonly=not repair) as (loop, kind):
        whole = filesystem.check(loop.device, kind, repair=repair)
    ploopdisk.wait_detached(image)
    return whole
