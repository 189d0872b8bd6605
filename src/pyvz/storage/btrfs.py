"""btrfs: the container's files lie in a subvolume of their own (our layout 101).

    <home>/.ve.layout -> 101
    <home>/subvol/         subvolume: the root file system, ids as the container sees them
    <home>/subvol.new/     being created or cloned; never mounted, removed by the next step
    <home>/subvol.gone/    being removed
    <home>/subvol.snapshots/{guid}/        snapshots: read-only subvolumes
    <home>/subvol.snapshots/{guid}.new/    being made; being removed

The size is a limit of the subvolume's quota group, on the data it refers to; it needs quota groups
switched on for the whole file system (the pool's option quota=yes).  `df` inside shows the pool:
btrfs has no other answer.  Snapshots have no limit and count for nobody's.  A clone is a snapshot;
on another file system all is sent (storage/btrfssend.py), or copied where that cannot be.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyvz.errors import (
    InvalidState,
    PrivateMissing,
    Unsupported,
)
from pyvz.linux import archive, blockdevice, btrfs, file, mount, syscall
from pyvz.model.task import Progress
from pyvz.storage import base, btrfssend, tree
from pyvz.storage.kept import Kept

_SNAPSHOTS = "subvol.snapshots"


class Driver(base.Extras):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "btrfs"
    layout = 101
    pool_options = ("quota",)

    def capabilities(self, place: Path) -> base.Capabilities:
        """A size where quota groups are on; nothing at all outside a btrfs."""
        if not btrfs.is_btrfs(place):
            return base.Capabilities()
        quota = btrfs.has_quota(place)
        here = place / "subvol"  # of a home
        return base.Capabilities(
            snapshot=True,
            reflink=True,
            grow_online=quota,
            shrink=quota,
            discard=True,
            quota=quota,
            linked_clone=True,
            moves_mounted=True,
            streams=btrfssend.possible([here] if btrfs.is_subvolume(here) else []),
        )

    def prepare(self, place: Path, options: Mapping[str, str]) -> None:
        """Make `place` ready to be a pool; raises Unsupported when it is no btrfs."""
        _check_place(place)
        if options.get("quota") == "yes":
            btrfs.enable_quota(place)

    def present(self, home: Path) -> bool:
        """Whether subvol/ is a subvolume."""
        return btrfs.is_subvolume(home / "subvol")

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Unpack `source` into the subvolume subvol.new and give it its name."""
        _check_place(home)
        if size is not None and not btrfs.has_quota(home):
            raise _no_quota()
        if self.present(home):
            return
        with self._built(home) as new:
            btrfs.create(new)
            new.chmod(0o755)
            if size is not None:
                btrfs.set_limit(new, size)
            if source is not None:
                archive.unpack(source, new, progress)

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Bind the subvolume on the target."""
        self._check_present(home)
        tree.bind(home / "subvol", target, readonly=readonly)

    def umount(self, home: Path, target: Path) -> None:
        """Take the bind away; nothing stands behind it."""
        del home
        mount.umount(target)

    def usage(self, home: Path) -> base.DiskUsage:
        """Return the limit and what is used of it, else the pool's space; btrfs has no inodes."""
        pool = tree.usage(home / "subvol")
        limit, used = btrfs.limit_and_use(home / "subvol")
        if limit is None:
            return pool
        free = min(max(0, limit - used), pool.free)
        return pool._replace(total=limit, used=min(used, limit), free=free, limited=True)

    def resize(self, home: Path, size: int) -> None:
        """Set the limit; not below what is used."""
        self._check_present(home)
        if not btrfs.has_quota(home):
            raise _no_quota()
        _, used = btrfs.limit_and_use(home / "subvol")
        if used > size:
            raise InvalidState(
                f"The disk cannot be made {size >> 20} MiB: {used >> 20} MiB are in use"
            )
        btrfs.set_limit(home / "subvol", size)

    def unlimit(self, home: Path) -> None:
        """Take the limit of its quota group away."""
        self._check_present(home)
        if btrfs.has_quota(home):
            btrfs.set_limit(home / "subvol", None)

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Snapshot subvol/, or copy it when the new home is on another file system."""
        if self.present(new_home):
            return
        self._check_present(home)
        _check_place(new_home)
        new = new_home / "subvol.new"
        btrfs.destroy(new)
        limit, _ = btrfs.limit_and_use(home / "subvol")
        progress.stage(f"Copying {home}")
        try:
            _bring(home, new_home, progress)
            if limit is not None and btrfs.has_quota(new_home):
                btrfs.set_limit(new, limit)
            progress.check()
            self._name(new_home, new)
        except BaseException:
            btrfs.destroy(new)
            _kept(new_home).remove()
            raise

    def linked_clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Snapshot subvol/; on another file system nothing can be shared."""
        base.check_same_file_system(home, new_home)
        self.clone(home, new_home, progress)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename subvol/ away, then remove it with all subvolumes that the guest made in it."""
        if not btrfs.is_btrfs(home):
            return
        if self.present(home):
            base.check_unmounted(home)
            progress.check()
            _destroy_if_ours(home / "subvol.gone")
            (home / "subvol").rename(home / "subvol.gone")
        for name in ("subvol.gone", "subvol.new", "subvol.received"):
            _destroy_if_ours(home / name)
        btrfssend.forget(home)
        _kept(home).remove()
        tree.unmark(home, self.layout)

    def devices(self, home: Path) -> tuple[tuple[int, int], ...]:
        """Return the disk under the file system; empty where there is none."""
        return tuple(blockdevice.disks_of(home))

    # -- Extras

    def snapshot(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Snapshot subvol/ with all that was written by then; nobody has to wait."""
        del disk
        self._check_present(home)
        _kept(home).make(guid, lambda new: btrfs.snapshot(home / "subvol", new, readonly=True))

    def switch(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Snapshot the snapshot, and exchange it with subvol/ in one step."""
        del disk
        self._check_present(home)
        old, new = home / "subvol", home / "subvol.new"
        source = _kept(home).get(guid)
        base.check_unmounted(old)
        btrfs.destroy(new)
        limit, _ = btrfs.limit_and_use(old)
        try:
            btrfs.snapshot(source, new)
            if limit is not None:
                btrfs.set_limit(new, limit)
            syscall.exchange(new, old)
            file.fsync_directory(home)
        finally:
            btrfs.destroy(new)

    def delete_snapshot(self, home: Path, guid: str, *, disk: str = base.ROOT_DISK) -> None:
        """Destroy its subvolume; what a killed snapshot left goes too."""
        del disk
        _kept(home).delete(guid)

    def mount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = base.ROOT_DISK
    ) -> None:
        """Bind the snapshot."""
        del disk
        found = _kept(home).get(guid)
        tree.check_free(target)
        tree.bind(found, target, readonly=True)

    def umount_snapshot(
        self, home: Path, guid: str, target: Path, *, disk: str = base.ROOT_DISK
    ) -> None:
        """Take the bind away."""
        del home, guid, disk
        mount.umount(target)

    @contextlib.contextmanager
    def send_streams(self, home: Path) -> Iterator[btrfssend.Source]:
        """Snapshot by snapshot; subvolumes inside a stream would leave out are refused."""
        self._check_present(home)
        kept = _kept(home).all(btrfs.written)
        for subvolume in (home / "subvol", *kept):
            if inside := btrfs.nested(subvolume):
                raise Unsupported(
                    f"{subvolume} has subvolumes of its own, which a stream leaves out: {inside[0]}"
                )
        btrfssend.forget(home)
        try:
            yield btrfssend.Source(home, home / "subvol", kept)
        finally:
            btrfssend.forget(home)

    @contextlib.contextmanager
    def receive_streams(self, home: Path, size: int | None) -> Iterator[btrfssend.Sink]:
        """Make the disk a snapshot of what was received last, and give it its name."""
        _check_place(home)
        btrfssend.forget(home)
        sink = btrfssend.Sink(home)
        try:
            with self._built(home) as new:
                yield sink
                # Nothing that is read-only can be renamed to another directory.
                for each in sink.kept:
                    keep = functools.partial(btrfs.snapshot, each, readonly=True)
                    _kept(home).make(each.name, keep)
                btrfs.snapshot(sink.newest, new)
                if size is not None:
                    btrfs.set_limit(new, size)
        except BaseException:
            _kept(home).remove()
            raise
        finally:
            btrfssend.forget(home)

    def forget_streams(self, home: Path) -> None:
        """Remove the snapshots that were there to be sent."""
        btrfssend.forget(home)

    def _check_present(self, home: Path) -> None:
        if not self.present(home):
            raise PrivateMissing(f"There is no container disk in {home}")

    @contextlib.contextmanager
    def _built(self, home: Path) -> Iterator[Path]:
        """Yield where to make the subvolume that becomes the disk when the block ends well."""
        new = home / "subvol.new"
        btrfs.destroy(new)
        try:
            yield new
            self._name(home, new)
        except BaseException:
            btrfs.destroy(new)
            raise

    def _name(self, home: Path, new: Path) -> None:
        """Make `new` the disk: the last act of all that makes one."""
        tree.mark(home, self.layout)
        new.rename(home / "subvol")


def _kept(home: Path) -> Kept:
    return Kept(home / _SNAPSHOTS, _destroy_if_ours)


def _bring(home: Path, new_home: Path, progress: Progress) -> None:
    """Make in the new home subvol.new and the snapshots; those share what they share here."""
    old, kept = _kept(home), _kept(new_home)
    here, new = home / "subvol", new_home / "subvol.new"
    apart = mount.holding_mount(home).device != mount.holding_mount(new_home).device
    names = old.names()
    if not (apart and names and btrfssend.possible([here, *map(old.get, names)])):
        kept.take_from(old, functools.partial(_keep, progress))
        _copy(here, new, progress)
        return
    received = new_home / "subvol.received"
    _destroy_if_ours(received)
    try:
        with btrfssend.Sending(home, progress) as sending:
            kept.take_from(old, sending.send, btrfs.written)
            sending.send(here, received)
        btrfs.snapshot(received, new)
    finally:
        _destroy_if_ours(received)


def _keep(progress: Progress, source: Path, new: Path) -> None:
    """Make `new` a read-only copy of a snapshot."""
    progress.check()
    _copy(source, new, progress)
    btrfs.set_readonly(new)


def _copy(source: Path, new: Path, progress: Progress) -> None:
    try:
        btrfs.snapshot(source, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        btrfs.create(new)
        file.copy_tree(source, new, progress)
        for inside in btrfs.nested(source):  # of which there is an empty directory now
            (new / inside).rmdir()
            _copy(source / inside, new / inside, progress)


def _destroy_if_ours(path: Path) -> None:
    if btrfs.is_subvolume(path):
        btrfs.destroy(path)


def _check_place(place: Path) -> None:
    if not btrfs.is_btrfs(place):
        kind = mount.holding_mount(place).fstype
        raise Unsupported(
            f"{place} is on {kind}: the storage driver btrfs needs a btrfs file system",
            hint="Choose another driver, or a directory on a btrfs.",
        )


def _no_quota() -> Unsupported:
    return Unsupported(
        "A container in a btrfs subvolume cannot be given a disk size here: quota is off",
        hint="Switch it on with: prlsrvctl pool set POOL --option quota=yes",
    )
