"""qcow2: a disk is a qcow2 image, shown by a QEMU storage daemon of its own (our layout 104).

    <home>/.ve.layout -> 104
    <home>/qcow2/                  the root disk (storage/qcow2disk.py)
    <home>/hdd1.hdd/               other disks, the same inside
    <home>/qcow2.new/  qcow2.gone/ being created or cloned; being removed

For pools that share no blocks: snapshots are inside the image and take a moment also on ext4.  It
is slower than a plain image, and the death of its daemon is that of the disk until the next mount.

The file system inside is chosen as for ploop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from pyvz.errors import (
    BadValue,
    InvalidState,
    MountError,
    PrivateMissing,
    StorageError,
    Unsupported,
)
from pyvz.image import qcow2
from pyvz.image.disk import normal_guid
from pyvz.image.report import Report
from pyvz.linux import file, filesystem, mount
from pyvz.model.task import Progress
from pyvz.storage import (
    attach,
    base,
    daemontest,
    diskname,
    golden,
    ploopdisk,
    ploopsize,
    qcow2adopt,
    qcow2shot,
    qcow2size,
    qcow2stack,
    quotamount,
    tree,
)
from pyvz.storage.base import ROOT_DISK
from pyvz.storage.daemon import why_not
from pyvz.storage.qcow2disk import FOLDER, Disk, clear, discard, empty, spaceless
from pyvz.storage.shots import FillShots, ShotImage, Shots

DEFAULT_SIZE: Final = 10 << 30
OWN: Final = "{70797a76-0000-"  # how the names of snapshots begin of which nobody is told


class Driver(base.Extras):
    """See `pyvz.storage.base.StorageDriver`, `Extras` and `ManyDisks`."""

    name = "qcow2"
    layout = 104

    def capabilities(self, place: Path) -> base.Capabilities:
        """What an image behind a daemon can do."""
        shares = golden.can_share(place)
        return base.Capabilities(
            snapshot=True,
            reflink=shares,
            linked_clone=shares,
            grow_online=True,
            shrink=filesystem.can_grow_ext4_online(),
            discard=True,
            changed_blocks=True,
            df_exact=True,
            quota=True,
            block_device=True,
            compact=True,
            check=True,
            mount_options=True,
            disks=True,
            served=True,
            restore=True,
            # Those of a thin disk below are in its own images.
            shot_images=_disk(place).stack is None,
        )

    def prepare(self, place: Path, options: Mapping[str, str]) -> None:
        """Make sure that a daemon works here, and find out how."""
        del options
        daemontest.direct_io(place)

    def release(self, place: Path) -> None:
        """Remove what was found out about daemons."""
        daemontest.forget(place)

    def present(self, home: Path) -> bool:
        """Whether the image is there."""
        return _disk(home).exists

    def disks(self, home: Path) -> list[str]:
        """Return the disks in the home, the root disk first."""
        names = set(diskname.candidates(home)) - {FOLDER, ROOT_DISK}
        data = [name for name in names if Disk(home / name).exists]
        return ([ROOT_DISK] if self.present(home) else []) + sorted(data)

    def place(self, home: Path, *, disk: str = ROOT_DISK) -> Path:
        """Return the directory of a disk."""
        return _disk(home, disk).path

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
        """Make the image, unpack `source` into it, and give it its name."""
        if _disk(home, disk).exists:
            return
        _check_possible()
        wanted = (size or DEFAULT_SIZE) // qcow2size.GRAIN * qcow2size.GRAIN
        with self._built(home, disk) as new:
            with spaceless(home), new.locked():
                qcow2size.build(new, wanted, source, progress, made)
            progress.check()

    def mount(
        self,
        home: Path,
        target: Path,
        *,
        readonly: bool = False,
        disk: str = ROOT_DISK,
        options: base.MountOptions = base.MountOptions(),  # noqa: B008  a value
    ) -> None:
        """Start the daemon, attach its disk and mount it, without device files."""
        found = self._existing(home, disk)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with found.locked():
            if _is_there(found, target, readonly=readonly):
                return
            found.check_idle()
            with found.device(readonly=readonly) as (loop, kind):
                device = (loop.device, kind)
                ploopdisk.place(_mounted(found, device, options, readonly=readonly), target)

    def umount(self, home: Path, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Unmount, wait until the device is gone, and end the daemon."""
        found = _disk(home, disk)
        if not found.exists:
            mount.umount(target)
            return
        with found.locked():
            mount.umount(target)
            if not found.mounted():
                found.finish()

    def usage(self, home: Path, *, disk: str = ROOT_DISK) -> base.DiskUsage:
        """Return what df shows inside; of a disk that is not mounted, what its superblock says."""
        found = self._existing(home, disk)
        places = found.mounted()
        if places:
            space = filesystem.space_of(places[0].target)
        else:
            with found.locked():
                space = found.space()
        return base.DiskUsage(space.total, space.used, space.free, space.inodes, space.inodes_used)

    def size(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Return what the header of the image says."""
        return qcow2.require(self._existing(home, disk).image).now.size

    def fstype(self, home: Path, *, disk: str = ROOT_DISK) -> str:
        """Return the kind of the file system on the disk; raises StorageError."""
        found = self._existing(home, disk)
        if places := found.mounted():
            return places[0].fstype
        with found.locked():
            found.check_idle()
            with found.device(readonly=True) as (_, kind):
                return kind

    def resize(self, home: Path, size: int, *, disk: str = ROOT_DISK) -> None:
        """Grow (also while mounted), or shrink an ext4 that is not mounted and has no snapshots."""
        found = self._existing(home, disk)
        size = size // qcow2size.GRAIN * qcow2size.GRAIN
        if size <= 0:
            raise BadValue(f"A disk cannot have {size} bytes")
        with spaceless(home), found.locked():
            if size >= qcow2.require(found.image).now.size:
                qcow2size.grow(found, size)
            else:
                qcow2size.shrink(found, size)

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy the images with their snapshots; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        self._existing(home)
        base.check_unmounted(home)
        # The root disk last: with its name the home has a whole disk.
        for name in reversed(self.disks(home)):
            try:
                self._clone(home, new_home, name, progress)
            except BaseException:
                for made in self.disks(new_home):
                    self._remove(new_home, made)
                raise

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Reflink the images: neither needs the other on."""
        if not golden.can_share(new_home):
            raise self._cannot("share blocks there", new_home)
        base.check_same_file_system(home, new_home)
        self.clone(home, new_home, progress)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename each disk away, then remove it; leftovers of interrupted steps go too."""
        names = self.disks(home)
        for name in names:
            _release(_disk(home, name))
        base.check_unmounted(home)
        progress.check()
        root = _disk(home)
        if root.exists and (stack := root.stack):  # first, so that what is left is no ploop disk
            stack.directory.rename(home / f"{ROOT_DISK}.gone")
            (home / "templates").unlink(missing_ok=True)
        for name in names:
            self._remove(home, name)
        for entry in list(os.scandir(home)):
            if diskname.is_leftover(entry.name):
                clear(Disk(home / entry.name))
        tree.unmark(home, self.layout)

    def remove_disk(self, home: Path, disk: str) -> None:
        """Remove one disk beside the root disk; raises Busy."""
        if disk == ROOT_DISK:
            raise InvalidState("The root disk goes with its container only")
        found = self._existing(home, disk)
        with found.locked():
            found.check_idle()
            _release(found)
        self._remove(home, disk)

    def devices(self, home: Path, *, disk: str | None = None) -> Sequence[tuple[int, int]]:
        """Return the loop devices of the disks that are mounted."""
        names = self.disks(home) if disk is None else [disk]
        loops = [loop for name in names for loop in attach.loops(_disk(home, name).daemon)]
        return tuple((loop.major, loop.minor) for loop in loops)

    # -- Extras

    def adopt(self, home: Path) -> bool:
        """Take a thin ploop disk as it is, and write beside it from now on."""
        stack = qcow2stack.thin(home / ROOT_DISK)
        if stack is None or self.present(home):
            return False
        if why := why_not():
            raise Unsupported(f"A disk cannot be run where it lies on this node: {why}")
        with self._built(home, ROOT_DISK) as new, new.locked():
            qcow2adopt.put_above(new, stack)
        return True

    def hand_over(self, home: Path, driver: str, progress: Progress) -> bool:
        """Bring what was written back into the ploop disk on which it stands."""
        disk = self._existing(home)
        stack = disk.stack
        if stack is None or driver != "ploop":
            return False
        if len(names := self.disks(home)) > 1:
            raise InvalidState(
                f"There are more disks than the one to bring back: {', '.join(names[1:])}",
                hint="Take them away first: prlctl set CT --device-del hddN.",
            )
        with disk.locked():
            disk.check_idle()
            disk.make_whole()
            qcow2adopt.write_down(disk, stack, progress)
        self._put_away(home, ROOT_DISK)
        tree.unmark(home, self.layout)
        tree.mark(home, 5)
        clear(Disk(home / f"{FOLDER}.gone"))
        return True

    def failed(self, home: Path) -> str:
        """Say when the daemon below a mounted disk is dead."""
        why = (_disk(home, name).failed() for name in self.disks(home))
        return next((text for text in why if text), "")

    def snapshots(self, home: Path, *, disk: str = ROOT_DISK) -> list[str]:
        """Return those in the image."""
        return [each.name for each in self._existing(home, disk).snapshots()]

    def snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Keep the state inside the image; a mounted disk is frozen for that."""
        qcow2shot.take(self._existing(home, disk), normal_guid(guid))

    def switch(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Make the disk refer to what the snapshot refers to; it keeps its size."""
        qcow2shot.switch(self._existing(home, disk), normal_guid(guid))

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Take it out of the image; what only it had becomes free."""
        qcow2shot.delete(self._existing(home, disk), normal_guid(guid))

    def mount_snapshot(self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Show the snapshot by a daemon of its own and mount it read-only."""
        qcow2shot.mount_at(self._existing(home, disk), normal_guid(guid), target)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK
    ) -> None:
        """Unmount and end its daemon."""
        qcow2shot.umount(self._existing(home, disk), normal_guid(guid), target)

    def changed(
        self, home: Path, since: str, until: str | None = None, *, disk: str = ROOT_DISK
    ) -> list[tuple[int, int]]:
        """Compare to which clusters both refer."""
        until = None if until is None else normal_guid(until)
        return qcow2shot.changed(self._existing(home, disk), normal_guid(since), until)

    def read_snapshot(
        self, home: Path, guid: str, *, disk: str = ROOT_DISK
    ) -> AbstractContextManager[tuple[Path, int, int]]:
        """Show the snapshot by a daemon of its own."""
        return qcow2shot.reading(self._existing(home, disk), normal_guid(guid))

    def restore_image(
        self,
        home: Path,
        size: int,
        fill: base.Fill,
        *,
        disk: str = ROOT_DISK,
    ) -> None:
        """Have a new image beside filled through its daemon, then give it its name."""
        _check_possible()
        with self._built(home, disk) as new, spaceless(home), new.locked():
            qcow2size.fill(new, size, fill)

    def shots(self, home: Path, *, disk: str = ROOT_DISK) -> Shots:
        """Return those in the image, which tells of no tree; our own for a while stay here."""
        kept = [s for s in self._existing(home, disk).snapshots() if not s.name.startswith(OWN)]
        return Shots(tuple(ShotImage(each.name, "", each.state.size) for each in kept))

    def restore_shots(
        self, home: Path, content: tuple[int, Shots], fill: FillShots, *, disk: str = ROOT_DISK
    ) -> None:
        """Have a new image filled as `restore_image`, with snapshots taken meanwhile."""
        _check_possible()
        with self._built(home, disk) as new, spaceless(home), new.locked():
            qcow2size.fill_shots(new, *content, fill)

    def limit_inodes(self, home: Path, count: int | None, *, disk: str = ROOT_DISK) -> None:
        """Limit those of an xfs; an ext4 has what it was made with."""
        found = self._existing(home, disk)
        if (kind := self.fstype(home, disk=disk)) != "xfs":
            raise Unsupported(
                f"The number of inodes of an {kind} cannot be changed",
                hint="It can be given when a disk is created, and grows with the disk.",
            )
        with found.locked(), qcow2shot.opened(found) as mounted:
            filesystem.limit_inodes(mounted, count)

    def compact(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Trim the file system; what counts is by how much the image became smaller."""
        found = self._existing(home, disk)
        with found.locked():
            before = found.image.stat().st_blocks
            with qcow2shot.opened(found) as mounted:
                filesystem.sync(mounted)
                filesystem.trim(mounted)
                filesystem.sync(mounted)
            return max(0, before - ploopsize.settled(found.image)) * 512

    def check(self, home: Path, *, repair: bool = False, disk: str = ROOT_DISK) -> Report:
        """Check the tables of the image and the file system in it."""
        found = self._existing(home, disk)
        with found.locked():
            found.check_idle()
            report = found.check(repair="all" if repair else "")
            if report.errors:
                return report
            with found.shown(readonly=not repair) as (loop, kind):
                whole = bool(kind) and filesystem.check(loop.device, kind, repair=repair)
            damaged = () if whole else (f"{found.image}: the file system is damaged",)
            return report._replace(errors=damaged)

    # -- steps

    def _existing(self, home: Path, disk: str = ROOT_DISK) -> Disk:
        found = _disk(home, disk)
        if not found.exists:
            raise PrivateMissing(f"There is no container disk in {home}")
        return found

    def _clone(self, home: Path, new_home: Path, name: str, progress: Progress) -> None:
        disk = self._existing(home, name)
        with self._built(new_home, name) as new:
            with disk.locked():
                disk.check_idle()
                disk.make_whole()
                progress.stage(f"Copying {disk.path}")
                progress.check()
                ploopdisk.copy(disk.image, new.image, progress)
                if stack := disk.stack:
                    stack.write(new.path)
                    qcow2adopt.clone_below(stack, new_home, progress)
            progress.check()

    def _put_away(self, home: Path, name: str) -> Disk:
        """Rename a disk, and return what it is now."""
        path = _disk(home, name).path
        gone = Disk(path.with_name(f"{path.name}.gone"))
        clear(gone)
        path.rename(gone.path)
        return gone

    def _remove(self, home: Path, name: str) -> None:
        clear(self._put_away(home, name))

    @contextmanager
    def _built(self, home: Path, disk: str) -> Iterator[Disk]:
        """Yield an empty disk, which becomes `disk` when the block ends well."""
        new = empty(_new(home, disk))
        try:
            yield new
            self._name(home, new, disk)
        except BaseException:
            discard(new)
            raise

    def _name(self, home: Path, new: Disk, disk: str) -> None:
        """Make `new` the disk: the last act of all that makes one."""
        if disk == ROOT_DISK:
            tree.mark(home, self.layout)
        new.path.rename(_disk(home, disk).path)
        file.fsync_directory(home)


def _check_possible() -> None:
    if why := why_not():
        raise Unsupported(f"A container cannot have the layout qcow2 on this node: {why}")


def _disk(home: Path, name: str = ROOT_DISK) -> Disk:
    return Disk(home / (FOLDER if name == ROOT_DISK else diskname.checked(name)))


def _new(home: Path, name: str) -> Path:
    """Return where a disk is made."""
    path = _disk(home, name).path
    return path.with_name(f"{path.name}.new")


def _release(disk: Disk) -> None:
    """End the daemons of a disk and of its snapshots that nothing is mounted on."""
    if not disk.mounted():
        disk.finish()
    for view in disk.views():
        if not view.mounted():
            view.finish()


def _mounted(
    disk: Disk, device: tuple[Path, str], options: base.MountOptions, *, readonly: bool
) -> int:
    """Mount a device of the disk nowhere in the tree; returns the descriptor of the mount."""
    if readonly:
        return filesystem.mount_mortal(*device, readonly=True, options=options.words)

    def mounter(words: tuple[str, ...]) -> int:
        return filesystem.mount_mortal(*device, options=words)

    return quotamount.mounted(disk.image, device, options, mounter)


def _is_there(disk: Disk, target: Path, *, readonly: bool) -> bool:
    """Whether the disk is mounted at `target` as asked; raises when that place is taken."""
    if (entry := mount.mount_at(target)) is None:
        return False
    if entry.device not in {(loop.major, loop.minor) for loop in attach.loops(disk.daemon)}:
        raise MountError(f"Something else is mounted on {target}")
    if why := disk.failed():
        raise StorageError(f"{target} is mounted, but {why}", hint="Unmount it (stop with --kill).")
    tree.check_mode(target, readonly=readonly)
    return True
