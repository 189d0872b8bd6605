"""qcow2: the disk is a qcow2 image, shown by a QEMU storage daemon of its own (our layout 104).

    <home>/.ve.layout -> 104
    <home>/qcow2/                  the disk (storage/qcow2disk.py)
    <home>/qcow2.new/  qcow2.gone/ being created or cloned; being removed

For pools that share no blocks: snapshots are inside the image and take a moment also on ext4.  It
is slower than a plain image, and the death of its daemon is that of the disk until the next mount.

The file system inside is chosen as for ploop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyvz.errors import (
    AlreadyExists,
    AlreadyMounted,
    BadValue,
    Busy,
    InvalidState,
    MountError,
    NotFound,
    PrivateMissing,
    StorageError,
    Timeout,
    Unsupported,
    VZError,
)
from pyvz.image import qcow2
from pyvz.image.disk import normal_guid
from pyvz.image.report import Report
from pyvz.linux import file, filesystem, mount, syscall
from pyvz.model.task import Progress
from pyvz.storage import (
    attach,
    base,
    daemontest,
    golden,
    ploopdisk,
    ploopsize,
    qcow2adopt,
    qcow2size,
    qcow2stack,
    tree,
)
from pyvz.storage.base import ROOT_DISK
from pyvz.storage.daemon import NODE, why_not
from pyvz.storage.qcow2disk import Disk, spaceless

DEFAULT_SIZE: Final = 10 << 30


class Driver(base.Extras):
    """See `pyvz.storage.base.StorageDriver` and `Extras`."""

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
            served=True,
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

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Make the image, unpack `source` into it, and give it its name."""
        if self.present(home):
            return
        if why := why_not():
            raise Unsupported(f"A container cannot have the layout qcow2 on this node: {why}")
        wanted = (size or DEFAULT_SIZE) // qcow2size.GRAIN * qcow2size.GRAIN
        new = _empty(home / "qcow2.new")
        try:
            with spaceless(home), new.locked():
                qcow2size.build(new, wanted, source, progress)
            progress.check()
            self._name(home, new)
        except BaseException:
            _discard(new)
            raise

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Start the daemon, attach its disk and mount it, without device files."""
        disk = self._existing(home)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with disk.locked():
            if _is_there(disk, target, readonly=readonly):
                return
            disk.check_idle()
            with disk.device(readonly=readonly) as (loop, kind):
                ploopdisk.place(
                    filesystem.mount_mortal(loop.device, kind, readonly=readonly), target
                )

    def umount(self, home: Path, target: Path) -> None:
        """Unmount, wait until the device is gone, and end the daemon."""
        disk = _disk(home)
        if not disk.exists:
            mount.umount(target)
            return
        with disk.locked():
            mount.umount(target)
            if not disk.mounted():
                disk.finish()

    def usage(self, home: Path) -> base.DiskUsage:
        """Return what df shows inside; of a disk that is not mounted, what its superblock says."""
        disk = self._existing(home)
        places = disk.mounted()
        if places:
            space = filesystem.space_of(places[0].target)
        else:
            with disk.locked():
                space = disk.space()
        return base.DiskUsage(space.total, space.used, space.free, space.inodes, space.inodes_used)

    def resize(self, home: Path, size: int) -> None:
        """Grow (also while mounted), or shrink an ext4 that is not mounted and has no snapshots."""
        disk = self._existing(home)
        size = size // qcow2size.GRAIN * qcow2size.GRAIN
        if size <= 0:
            raise BadValue(f"A disk cannot have {size} bytes")
        with spaceless(home), disk.locked():
            if size >= qcow2.require(disk.image).now.size:
                qcow2size.grow(disk, size)
            else:
                qcow2size.shrink(disk, size)

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy the image with its snapshots; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        disk = self._existing(home)
        new = _empty(new_home / "qcow2.new")
        try:
            with disk.locked():
                disk.check_idle()
                base.check_unmounted(home)
                disk.make_whole()
                progress.stage(f"Copying {home}")
                progress.check()
                ploopdisk.copy(disk.image, new.image, progress)
                if stack := disk.stack:
                    stack.write(new.path)
                    qcow2adopt.clone_below(stack, new_home, progress)
            progress.check()
            self._name(new_home, new)
        except BaseException:
            _discard(new)
            raise

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Reflink the images: neither needs the other on."""
        if not golden.can_share(new_home):
            raise self._cannot("share blocks there", new_home)
        base.check_same_file_system(home, new_home)
        self.clone(home, new_home, progress)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename the disk away, then remove it; leftovers of interrupted steps go too."""
        disk = _disk(home)
        if disk.exists:
            if not disk.mounted():
                disk.finish()
            for view in disk.views():
                if not view.mounted():
                    view.finish()
            base.check_unmounted(home)
            progress.check()
            if stack := disk.stack:  # first, so that what is left is no ploop disk of old
                stack.directory.rename(home / f"{ROOT_DISK}.gone")
                (home / "templates").unlink(missing_ok=True)
            self._put_away(home, disk)
        for name in ("qcow2.gone", "qcow2.new"):
            _clear(Disk(home / name))
        for name in (f"{ROOT_DISK}.gone", f"{ROOT_DISK}.new"):
            file.remove_tree(home / name)
        tree.unmark(home, self.layout)

    def devices(self, home: Path) -> tuple[tuple[int, int], ...]:
        """Return the loop device, while it is mounted."""
        return tuple((loop.major, loop.minor) for loop in attach.loops(_disk(home).daemon))

    # -- Extras

    def adopt(self, home: Path) -> bool:
        """Take a thin ploop disk as it is, and write beside it from now on."""
        stack = qcow2stack.thin(home / ROOT_DISK)
        if stack is None or self.present(home):
            return False
        if why := why_not():
            raise Unsupported(f"A disk cannot be run where it lies on this node: {why}")
        new = _empty(home / "qcow2.new")
        try:
            with new.locked():
                qcow2adopt.put_above(new, stack)
            self._name(home, new)
        except BaseException:
            _discard(new)
            raise
        return True

    def hand_over(self, home: Path, driver: str, progress: Progress) -> bool:
        """Bring what was written back into the ploop disk on which it stands."""
        disk = self._existing(home)
        stack = disk.stack
        if stack is None or driver != "ploop":
            return False
        with disk.locked():
            disk.check_idle()
            disk.make_whole()
            qcow2adopt.write_down(disk, stack, progress)
        self._put_away(home, disk)
        tree.unmark(home, self.layout)
        tree.mark(home, 5)
        _clear(Disk(home / "qcow2.gone"))
        return True

    def failed(self, home: Path) -> str:
        """Say when the daemon below a mounted disk is dead."""
        return _disk(home).failed()

    def snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Keep the state inside the image; a mounted disk is frozen for that."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        with spaceless(home), found.locked():
            if any(each.name == guid for each in found.snapshots()) or found.shot(guid):
                raise AlreadyExists(f"there is a snapshot {guid} already")
            places = found.mounted()
            if not places:
                found.check_idle()
                found.make_whole()
                found.change("snapshot", "-q", "-c", guid, found.image)
                return
            what = {"device": NODE, "name": guid}
            try:
                with _still(places[0].target):
                    found.daemon.flush()
                    found.daemon.execute("blockdev-snapshot-internal-sync", what)
            except Timeout:  # it has seen writes, or may come yet
                with contextlib.suppress(VZError):
                    found.daemon.execute("blockdev-snapshot-delete-internal-sync", what)
                raise

    def switch(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Make the disk refer to what the snapshot refers to; it keeps its size."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        with spaceless(home), found.locked():
            found.check_idle()
            if shot := found.shot(guid):
                self._stand_on(home, found, shot)
                return
            size = qcow2.require(found.image).now.size
            _known(found, guid)
            found.make_whole()
            found.change("snapshot", "-q", "-a", guid, found.image)
            if qcow2.require(found.image).now.size < size:
                qcow2size.grow(found, size)

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = ROOT_DISK) -> None:
        """Take it out of the image; what only it had becomes free."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        with found.locked():
            if found.shot(guid):
                raise InvalidState(
                    f"The snapshot {guid} is in the ploop disk below and cannot be deleted there",
                    hint="Bring it back first: prlctl convert CT --layout ploop.",
                )
            _known(found, guid)
            view = found.view(guid)
            if view.mounted():
                raise Busy(f"The snapshot {guid} is mounted", hint="Unmount it first.")
            view.finish()
            if found.mounted():
                what = {"device": NODE, "name": guid}
                found.daemon.execute("blockdev-snapshot-delete-internal-sync", what)
                return
            found.check_idle()
            found.make_whole()
            found.change("snapshot", "-q", "-d", guid, found.image)

    def mount_snapshot(self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK) -> None:
        """Show the snapshot by a daemon of its own and mount it read-only."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        with found.locked():
            if mount.is_mount_point(target):
                raise AlreadyMounted(f"Something is mounted on {target} already")
            _known(found, guid)
            if (view := found.view(guid)).mounted():
                raise AlreadyMounted(f"The snapshot {guid} is mounted already")
            with view.shown() as (loop, kind):
                options = ("norecovery",) if kind == "xfs" else ("noload",)
                mounted = filesystem.mount_detached(
                    loop.device, kind, readonly=True, options=options
                )
                ploopdisk.place(mounted, target)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = ROOT_DISK
    ) -> None:
        """Unmount and end its daemon."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        with found.locked():
            _known(found, guid)
            mount.umount(target)
            found.view(guid).finish()

    def changed(
        self, home: Path, since: str, until: str | None = None, *, disk: str = ROOT_DISK
    ) -> list[tuple[int, int]]:
        """Compare to which clusters both refer."""
        found = self._existing(home, disk)
        names = [normal_guid(since), None if until is None else normal_guid(until)]
        with found.locked(), contextlib.ExitStack() as still:
            places = found.mounted()
            if until is None and places:
                still.enter_context(_still(places[0].target))
                found.daemon.flush()
            with qcow2.image(found.image) as image:
                return image.changed(*(image.state(name) for name in names))

    @contextlib.contextmanager
    def read_snapshot(
        self, home: Path, guid: str, *, disk: str = ROOT_DISK
    ) -> Iterator[tuple[Path, int, int]]:
        """Show the snapshot by a daemon of its own."""
        found = self._existing(home, disk)
        guid = normal_guid(guid)
        with found.locked():
            _known(found, guid)
            serving = contextlib.ExitStack()
            file_ = serving.enter_context(found.view(guid).served())
        with serving:
            yield file_, 0, file_.stat().st_size

    def compact(self, home: Path, *, disk: str = ROOT_DISK) -> int:
        """Trim the file system; what counts is by how much the image became smaller."""
        found = self._existing(home, disk)
        with found.locked():
            before = found.image.stat().st_blocks
            with _opened(found) as mounted:
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

    def _existing(self, home: Path, disk: str = ROOT_DISK) -> Disk:
        found = _disk(home)
        if not found.exists or disk != ROOT_DISK:
            raise PrivateMissing(f"There is no container disk in {home}")
        return found

    def _stand_on(self, home: Path, disk: Disk, stack: qcow2stack.Stack) -> None:
        """Begin anew above a snapshot of the ploop disk below; what was written since is lost."""
        if disk.snapshots():
            raise InvalidState(
                f"{disk.path} has snapshots that were made later, which would be lost",
                hint="Delete them, or bring the disk back: prlctl convert CT --layout ploop.",
            )
        size = qcow2.require(disk.image).now.size
        new = _empty(home / "qcow2.new")
        try:
            with new.locked():
                qcow2adopt.put_above(new, stack)
                qcow2size.grow(new, size)
            syscall.exchange(new.path, disk.path)
            file.fsync_directory(home)
        finally:
            _discard(new)

    def _put_away(self, home: Path, disk: Disk) -> None:
        _clear(Disk(home / "qcow2.gone"))
        disk.path.rename(home / "qcow2.gone")

    def _name(self, home: Path, new: Disk) -> None:
        """Make `new` the disk: the last act of create and clone."""
        tree.mark(home, self.layout)
        new.path.rename(home / "qcow2")
        file.fsync_directory(home)


def _disk(home: Path) -> Disk:
    return Disk(home / "qcow2")


def _known(disk: Disk, guid: str) -> None:
    if not (disk.shot(guid) or any(each.name == guid for each in disk.snapshots())):
        raise NotFound(f"there is no snapshot {guid}")


@contextlib.contextmanager
def _still(target: str) -> Iterator[None]:
    """Keep a mounted disk from being written to for the block; all before is on it."""
    with (
        ploopdisk.directory(target) as mounted,
        filesystem.frozen(mounted, ploopdisk.SNAPSHOT_TIMEOUT),
    ):
        yield


@contextlib.contextmanager
def _opened(disk: Disk) -> Iterator[int]:
    """Yield the root of the disk's file system; not mounted: it is, nowhere in the tree."""
    places = disk.mounted()
    if places:
        with ploopdisk.directory(places[0].target) as mounted:
            yield mounted
        return
    disk.check_idle()
    with disk.device() as (loop, kind):
        mounted = filesystem.mount_mortal(loop.device, kind)
        try:
            yield mounted
        finally:
            os.close(mounted)


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


def _empty(directory: Path) -> Disk:
    """Return the disk of `directory` made anew; what an interrupted step left there is removed."""
    disk = Disk(directory)
    _clear(disk)
    directory.mkdir(mode=0o700)
    return disk


def _clear(disk: Disk) -> None:
    """End the daemon of a disk that is nobody's, and remove it."""
    attach.finish(disk.daemon)
    file.remove_tree(disk.path)


def _discard(new: Disk) -> None:
    """Remove what a failed step made; its error is what matters."""
    with contextlib.suppress(VZError, OSError):
        _clear(new)
