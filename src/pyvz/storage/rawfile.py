"""rawfile: a sparse file that is a file system from its first byte on (our layout 103).

    <home>/.ve.layout -> 103
    <home>/raw/disk.img            ext4 or xfs, nothing else; any tool can mount it with a loop
    <home>/raw.new/  raw.gone/     being created or cloned; being removed

The device clears itself when the last mount of it goes, and what is being filled is mounted nowhere
in the tree: whoever is killed leaves files only.  No snapshots: that is what ploop is for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvz.errors import (
    Busy,
    InvalidState,
    MountError,
    PrivateMissing,
    StorageError,
    Unsupported,
)
from pyvz.linux import archive, file, filesystem, loopdevice, mount, run
from pyvz.linux.features import reflink_at
from pyvz.model.task import NoProgress, Progress
from pyvz.storage import base, changes, ploopdisk, tree

DEFAULT_SIZE: Final = 10 << 30
_GRAIN: Final = 1 << 20  # sizes are whole MiB
_DETACH_TIMEOUT: Final = 30.0


class Driver(base.Extras):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "rawfile"
    layout = 103

    def capabilities(self, place: Path) -> base.Capabilities:
        """What an image with one file system in it can do."""
        ext4 = filesystem.can_grow_ext4_online()
        shares = bool(reflink_at(place))
        return base.Capabilities(
            reflink=shares,
            grow_online=True,
            shrink=ext4,
            discard=True,
            changed_blocks=shares,
            df_exact=True,
            quota=True,
            block_device=True,
            compact=True,
            moves_mounted=True,
            image=True,
            restore=True,
        )

    def present(self, home: Path) -> bool:
        """Whether the image is there."""
        return _image(home).is_file() and not (home / "raw").is_symlink()

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Make the image, unpack `source` into it, and give it its name."""
        if self.present(home):
            return
        new = _empty(home / "raw.new")
        try:
            _build(new / "disk.img", (size or DEFAULT_SIZE) // _GRAIN * _GRAIN, source, progress)
            progress.check()
            self._name(home, new)
        except BaseException:
            file.remove_tree(new)
            raise

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Attach the image and mount it, without device files."""
        image = self._existing(home)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = mount.mount_at(target)
        if there is not None:
            if there.device not in {(loop.major, loop.minor) for loop in loopdevice.find(image)}:
                raise MountError(f"Something else is mounted on {target}")
            tree.check_mode(target, readonly=readonly)
            return
        if loopdevice.find(image):
            _wait_detached(image)
        size = image.stat().st_size
        with loopdevice.attached(image, 0, size, readonly=readonly) as loop:
            mounted = filesystem.mount_detached(loop.device, _kind(image), readonly=readonly)
            try:
                filesystem.place(mounted, target)
            finally:
                os.close(mounted)

    def umount(self, home: Path, target: Path) -> None:
        """Unmount and wait until the device is gone."""
        mount.umount(target)
        if self.present(home):
            _wait_detached(_image(home))

    def usage(self, home: Path) -> base.DiskUsage:
        """Return what df shows inside; of a disk that is not mounted, what its superblock says."""
        image = self._existing(home)
        places = _mounted(image)
        space = filesystem.space_of(places[0]) if places else filesystem.space_at(image)
        return base.DiskUsage(space.total, space.used, space.free, space.inodes, space.inodes_used)

    def resize(self, home: Path, size: int) -> None:
        """Grow (also while mounted), or shrink an ext4 that is not mounted."""
        image = self._existing(home)
        size = size // _GRAIN * _GRAIN
        if size >= image.stat().st_size:
            _grow(image, size)
        else:
            _shrink(image, size)

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy the image; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        image = self._existing(home)
        base.check_unmounted(home)
        new = _empty(new_home / "raw.new")
        try:
            progress.stage(f"Copying {home}")
            argv = ["cp", "--reflink=auto", "--sparse=auto", "--"]
            run.run([*argv, image, new / "disk.img"], timeout=None, poll=progress.check)
            progress.check()
            self._name(new_home, new)
        except BaseException:
            file.remove_tree(new)
            raise

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename the image away, then remove it; leftovers of interrupted steps go too."""
        if self.present(home):
            base.check_unmounted(home)
            progress.check()
            file.remove_tree(home / "raw.gone")
            (home / "raw").rename(home / "raw.gone")
        for name in ("raw.gone", "raw.new"):
            file.remove_tree(home / name)
        tree.unmark(home, self.layout)

    def devices(self, home: Path) -> tuple[tuple[int, int], ...]:
        """Return the loop device, while it is mounted."""
        return tuple((loop.major, loop.minor) for loop in loopdevice.find(_image(home)))

    def compact(self, home: Path, *, disk: str = base.ROOT_DISK) -> int:
        """Trim the file system; what counts is by how much the file became smaller."""
        del disk
        image = self._existing(home)
        before = image.stat().st_blocks
        with _opened(image) as mounted:
            filesystem.trim(mounted)
            filesystem.sync(mounted)
        return max(0, before - image.stat().st_blocks) * 512

    def image_changes(self, old: Path, new: Path) -> changes.Ranges:
        """Compare where the blocks of both copies lie."""
        return changes.between(old, new, 0, new.stat().st_size)

    def copy_image(
        self, home: Path, target: Path, *, disk: str = base.ROOT_DISK
    ) -> tuple[int, int]:
        """Copy the image, frozen if it is mounted; blocks are shared where the pool can."""
        del disk
        image = self._existing(home)
        with _still(image):
            ploopdisk.copy(image, target, NoProgress())
        return 0, target.stat().st_size

    def image_file(self, home: Path, *, disk: str = base.ROOT_DISK) -> Path:
        """Return the image."""
        del disk
        return self._existing(home)

    def restore_image(
        self,
        home: Path,
        size: int,
        fill: base.Fill,
        *,
        disk: str = base.ROOT_DISK,
    ) -> None:
        """Fill a new image beside, have its file system checked, then give it its name."""
        del disk
        new = _empty(home / "raw.new")
        try:
            image = new / "disk.img"
            with image.open("xb") as stream:
                stream.truncate(size)
                fill(stream.fileno(), 0)
                os.fsync(stream.fileno())
            _make_whole(image)
            self._name(home, new)
        except BaseException:
            file.remove_tree(new)
            raise

    def _existing(self, home: Path) -> Path:
        if not self.present(home):
            raise PrivateMissing(f"There is no container disk in {home}")
        return _image(home)

    def _name(self, home: Path, new: Path) -> None:
        """Make `new` the disk: the last act of create and clone."""
        tree.mark(home, self.layout)
        new.rename(home / "raw")
        file.fsync_directory(home)


def _image(home: Path) -> Path:
    return home / "raw/disk.img"


def _kind(image: Path) -> str:
    kind = filesystem.kind_at(image)
    if kind is None:
        raise StorageError(f"There is no file system of a known kind in {image}")
    return kind


def _build(image: Path, size: int, source: Path | None, progress: Progress) -> None:
    small = size < filesystem.MINIMUM["xfs"]
    kind = "ext4" if small or filesystem.can_grow_ext4_online() else "xfs"
    with image.open("xb") as stream:
        stream.truncate(size)
    with loopdevice.attached(image, 0, size) as loop:
        filesystem.make(loop.device, kind)
        mounted = filesystem.mount_detached(loop.device, kind)
        try:
            root = Path(f"/proc/{os.getpid()}/fd/{mounted}")
            root.chmod(0o755)
            if source is not None:
                archive.unpack(source, root, progress)
            filesystem.sync(mounted)
        finally:
            os.close(mounted)
    _wait_detached(image)


def _grow(image: Path, size: int) -> None:
    """Make the file longer first: a file system that is shorter than its file is whole."""
    with image.open("r+b") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())
    for loop in loopdevice.find(image):
        loopdevice.resize(loop.device, size)
    kind = _kind(image)
    if kind == "ext4" and not _mounted(image):
        _offline(image, size)
        return
    with _opened(image) as mounted:
        filesystem.grow_online(mounted, kind, size)


def _shrink(image: Path, size: int) -> None:
    """Make the file system smaller first, then cut the file."""
    if _mounted(image):
        raise InvalidState("A disk can only be made smaller while it is not mounted")
    if _kind(image) != "ext4":
        raise Unsupported("The disk cannot be made smaller: an xfs file system cannot shrink")
    _offline(image, size)
    os.truncate(image, size)


def _offline(image: Path, size: int) -> None:
    with loopdevice.attached(image, 0, image.stat().st_size) as loop:
        filesystem.resize_offline(loop.device, _kind(image), size)
    _wait_detached(image)


@contextlib.contextmanager
def _opened(image: Path) -> Iterator[int]:
    """Yield a descriptor of the root of the file system, mounted for the block when it is not."""
    places = _mounted(image)
    if places:
        fd = os.open(places[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    with loopdevice.attached(image, 0, image.stat().st_size) as loop:
        fd = filesystem.mount_detached(loop.device, _kind(image))
        try:
            yield fd
        finally:
            os.close(fd)
    _wait_detached(image)


@contextlib.contextmanager
def _still(image: Path) -> Iterator[None]:
    """Keep a mounted disk from being written to for the block."""
    places = _mounted(image)
    if not places:
        _wait_detached(image)
        yield
        return
    with ploopdisk.directory(places[0]) as fd, filesystem.frozen(fd, ploopdisk.SNAPSHOT_TIMEOUT):
        yield


def _make_whole(image: Path) -> None:
    """Check a file system that was copied while it was mounted; xfs replays its log at a mount."""
    if _kind(image) != "ext4":
        return
    with loopdevice.attached(image, 0, image.stat().st_size) as loop:
        if not filesystem.check(loop.device, "ext4"):
            raise StorageError(f"The file system in {image} is damaged")
    _wait_detached(image)


def _mounted(image: Path) -> list[str]:
    numbers = {(loop.major, loop.minor) for loop in loopdevice.find(image)}
    return [entry.target for entry in mount.mounts() if entry.device in numbers] if numbers else []


def _wait_detached(image: Path) -> None:
    """Wait until no device shows the image; raises Busy."""
    if places := _mounted(image):
        raise Busy(f"{image} is mounted at {places[0]}")
    for loop in loopdevice.find(image):
        backing = loopdevice.backing_of(loop.minor)
        if backing is not None:
            loopdevice.wait_gone(loop.minor, backing, _DETACH_TIMEOUT)


def _empty(directory: Path) -> Path:
    """Return `directory` made anew; what an interrupted step left there is removed."""
    file.remove_tree(directory)
    directory.mkdir(mode=0o700)
    return directory
