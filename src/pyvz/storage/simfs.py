"""simfs: the container's files lie in a plain directory of the node (OpenVZ layout 4).

    <home>/.ve.layout -> 4
    <home>/fs/             the root file system, ids as the container sees them
    <home>/fs.new/         being created or cloned; never mounted, removed by the next step
    <home>/fs.gone/        being removed

`mount` binds fs/ on the target.  Where the file system keeps project quota (linux/projectquota.py),
fs/ has a project of its own, which is its name in the kernel's accounts and lives as long as it:
a size and a number of files are limits of the project, and `df` inside shows them.  Elsewhere the
pool's space is shared by all, `df` inside shows the pool, and a size is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pyvz.errors import InvalidState, Unsupported
from pyvz.linux import archive, file, mount, projectquota
from pyvz.model.task import Progress
from pyvz.storage import base, tree


class Driver(tree.Directory):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "simfs"
    layout = 4
    folder = "fs"
    mode = 0o755

    pool_options = ("quota",)

    def capabilities(self, place: Path) -> base.Capabilities:
        """A size where project quota is kept; nothing beyond a directory elsewhere."""
        quota = projectquota.enforced(place)
        return base.Capabilities(
            moves_mounted=True,
            quota=quota,
            inode_limit=quota,
            df_exact=quota,
            grow_online=quota,
            shrink=quota,
        )

    def prepare(self, place: Path, options: Mapping[str, str]) -> None:
        """Any directory will do; with quota=yes one whose file system keeps project quota."""
        if options.get("quota") != "yes":
            return
        try:
            projectquota.enforce(place)
        except OSError as error:
            raise self.no_size(place) from error

    def present(self, home: Path) -> bool:
        """Whether fs/ is there, as a directory of its own and not behind a link."""
        try:
            return stat.S_ISDIR(os.lstat(home / "fs").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Build fs/ beside, limited before anything is in it, and give it its name."""
        quota = projectquota.enforced(home)
        if size is not None and not quota:
            raise self.no_size(home)
        if self.present(home):
            return
        with self.built(home) as new:
            if quota:
                _limit(new, projectquota.begin(new), size=size)
            self.fill(home, new, source, progress)
            progress.check()

    def fill(self, home: Path, new: Path, source: Path | None, progress: Progress) -> None:
        """Unpack `source`."""
        del home
        if source is not None:
            archive.unpack(source, new, progress)

    def copy(self, home: Path, new_home: Path, new: Path, progress: Progress) -> None:
        """Copy fs/ with its limits; raises Unsupported where they cannot be kept."""
        limits = _use(home)
        limited = limits is not None and (limits.size or limits.inodes)
        if projectquota.enforced(new_home):
            number = projectquota.begin(new)
            if limits is not None:
                _limit(new, number, size=limits.size, inodes=limits.inodes)
        elif limited:
            raise self.no_size(new_home)
        file.copy_tree(home / "fs", new, progress)

    def usage(self, home: Path) -> base.DiskUsage:
        """Return the limits and what is used of them, else the pool's space."""
        self.check_present(home)
        pool = tree.usage(home)
        own = _use(home)
        if own is None or own.size is None:
            return pool
        free = min(max(0, own.size - own.used), pool.free)
        space = pool._replace(total=own.size, used=own.used, free=free, limited=True)
        if own.inodes is None:
            return space
        return space._replace(inodes=own.inodes, inodes_used=own.inodes_used)

    def resize(self, home: Path, size: int) -> None:
        """Set the limit, also while it is in use; not below what is used."""
        self.check_present(home)
        if not projectquota.enforced(home):
            raise self.no_size(home)
        number, now = _own(home)
        if now.used > size:
            raise InvalidState(
                f"The disk cannot be made {size >> 20} MiB: {now.used >> 20} MiB are in use"
            )
        _limit(home, number, size=size, inodes=now.inodes)

    def unlimit(self, home: Path) -> None:
        """Take the limit of the space away; that of the files stays."""
        self.check_present(home)
        own = _use(home)
        if own is not None and own.size is not None:
            number = projectquota.project(home / "fs")
            _limit(home, number, size=None, inodes=own.inodes)

    def limit_inodes(self, home: Path, count: int | None, *, disk: str = base.ROOT_DISK) -> None:
        """Set the limit of the number of files, also while it is in use; or take it away."""
        del disk
        self.check_present(home)
        if not projectquota.enforced(home):
            if count is not None:
                raise self.no_size(home)
            return
        number, now = _own(home)
        if count is not None and now.inodes_used > count:
            raise InvalidState(
                f"The disk cannot be held to {count} files: it has {now.inodes_used}"
            )
        if now.inodes != count:
            _limit(home, number, size=now.size, inodes=count)

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Bind fs/ on the target, without device files (the engine brings its own /dev)."""
        self.check_present(home)
        tree.bind(home / "fs", target, readonly=readonly)

    def umount(self, home: Path, target: Path) -> None:
        """Take the bind away; nothing stands behind it."""
        del home
        mount.umount(target)

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename fs/ away, then remove it; leftovers of interrupted steps go too."""
        base.check_unmounted(home)
        progress.check()
        _remove(home / "fs.gone")
        if self.present(home):
            (home / "fs").rename(home / "fs.gone")
        _remove(home / "fs.gone")
        _remove(home / "fs.new")
        tree.unmark(home, self.layout)

    def no_size(self, place: Path) -> Unsupported:
        """Return why: a directory has no size but by the quota of its file system."""
        holder = mount.holding_mount(place)
        return Unsupported(
            "A container in a plain directory (simfs) cannot be given a disk size on this node",
            details=f"{holder.target} ({holder.fstype}) keeps no project quota: df inside shows "
            "the space of the whole pool.",
            hint="Mount an xfs or ext4 with the option prjquota there, leave the size out, or use "
            "a layout with a disk image.",
        )


def _use(home: Path) -> projectquota.Use | None:
    """Return limits and use of a disk; None where there is no quota, or it has no project."""
    if not projectquota.enforced(home):
        return None
    number = projectquota.project(home / "fs")
    return projectquota.use(home, number) if number else None


def _own(home: Path) -> tuple[int, projectquota.Use]:
    """Return the project of a disk and its use; given one, whole, when it has no limit yet.

    Limits are set last, so a disk that has one was gone through to its end.
    """
    found = _use(home)
    if found is not None and (found.size or found.inodes):
        return projectquota.project(home / "fs"), found
    number = projectquota.adopt(home / "fs")
    return number, projectquota.use(home, number)


def _limit(place: Path, number: int, *, size: int | None, inodes: int | None = None) -> None:
    projectquota.set_limits(place, number, size=size, inodes=inodes)


def _remove(directory: Path) -> None:
    """Remove a tree, and then the limits that bear its number: it is free again."""
    number = 0
    if directory.is_dir() and not directory.is_symlink():
        number = projectquota.project(directory)
    file.remove_tree(directory)
    if number and projectquota.enforced(directory.parent):
        _limit(directory.parent, number, size=None)
