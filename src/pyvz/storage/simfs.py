"""simfs: the container's files lie in a plain directory of the node (OpenVZ layout 4).

    <home>/.ve.layout -> 4
    <home>/fs/             the root file system, ids as the container sees them
    <home>/fs.new/         being created or cloned; never mounted, removed by the next step
    <home>/fs.gone/        being removed

`mount` binds fs/ on the target.  The pool's space is shared by all: `df` inside shows the pool.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyvz.errors import PrivateMissing, Unsupported
from pyvz.linux import archive, blockdevice, file, mount
from pyvz.model.task import Progress
from pyvz.storage import base, tree


class Driver(base.Extras):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "simfs"
    layout = 4

    def capabilities(self, place: Path) -> base.Capabilities:
        """Nothing beyond a directory, whatever the place."""
        del place
        return base.Capabilities()

    def present(self, home: Path) -> bool:
        """Whether fs/ is there, as a directory of its own and not behind a link."""
        try:
            return stat.S_ISDIR(os.lstat(home / "fs").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def create(
        self, home: Path, *, size: int | None, source: Path | None, progress: Progress
    ) -> None:
        """Unpack `source` into fs.new/ and give it its name."""
        if size is not None:
            raise _no_quota()
        if self.present(home):
            return
        new = _empty(home / "fs.new")
        try:
            if source is not None:
                archive.unpack(source, new, progress)
            self._name(home, new)
        except BaseException:
            file.remove_tree(new)
            raise

    def mount(self, home: Path, target: Path, *, readonly: bool = False) -> None:
        """Bind fs/ on the target, without device files (the engine brings its own /dev)."""
        if not self.present(home):
            raise PrivateMissing(f"There is no container disk in {home}")
        tree.bind(home / "fs", target, readonly=readonly)

    def umount(self, home: Path, target: Path) -> None:
        """Take the bind away; nothing stands behind it."""
        del home
        mount.umount(target)

    def usage(self, home: Path) -> base.DiskUsage:
        """Return the space of the file system that holds fs/."""
        return tree.usage(home / "fs")

    def resize(self, home: Path, size: int) -> None:
        """Refuse: a directory has no size."""
        del home, size
        raise _no_quota()

    def clone(self, home: Path, new_home: Path, progress: Progress) -> None:
        """Copy fs/; blocks are shared where the file system can."""
        if self.present(new_home):
            return
        if not self.present(home):
            raise PrivateMissing(f"There is no container disk in {home}")
        new = _empty(new_home / "fs.new")
        try:
            progress.stage(f"Copying {home}")
            file.copy_tree(home / "fs", new, progress)
            self._name(new_home, new)
        except BaseException:
            file.remove_tree(new)
            raise

    def remove(self, home: Path, progress: Progress) -> None:
        """Rename fs/ away, then remove it; leftovers of interrupted steps go too."""
        gone = home / "fs.gone"
        base.check_unmounted(home)
        progress.check()
        file.remove_tree(gone)
        if self.present(home):
            (home / "fs").rename(gone)
        file.remove_tree(gone)
        file.remove_tree(home / "fs.new")
        tree.unmark(home, self.layout)

    def devices(self, home: Path) -> tuple[tuple[int, int], ...]:
        """Return the disk under the file system that holds fs/; empty where there is none."""
        return tuple(blockdevice.disks_of(home))

    def _name(self, home: Path, new: Path) -> None:
        """Make `new` the disk: the last act of create and clone."""
        tree.mark(home, self.layout)
        new.rename(home / "fs")


def _empty(directory: Path) -> Path:
    """Return `directory` made anew; what an interrupted step left there is removed."""
    file.remove_tree(directory)
    directory.mkdir(mode=0o755)
    return directory


def _no_quota() -> Unsupported:
    return Unsupported(
        "A container in a plain directory (simfs) cannot be given a disk size on this node",
        details="simfs has no quota here: df inside shows the space of the whole pool.",
        hint="Leave the size out, or use a layout with a disk image.",
    )
