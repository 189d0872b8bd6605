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

from pyvz.errors import Unsupported
from pyvz.linux import archive, file, mount
from pyvz.model.task import Progress
from pyvz.storage import base, tree


class Driver(tree.Directory):
    """See `pyvz.storage.base.StorageDriver`."""

    name = "simfs"
    layout = 4
    folder = "fs"
    mode = 0o755

    def capabilities(self, place: Path) -> base.Capabilities:
        """Nothing beyond a directory, whatever the place."""
        del place
        return base.Capabilities(moves_mounted=True)

    def present(self, home: Path) -> bool:
        """Whether fs/ is there, as a directory of its own and not behind a link."""
        try:
            return stat.S_ISDIR(os.lstat(home / "fs").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def fill(self, home: Path, new: Path, source: Path | None, progress: Progress) -> None:
        """Unpack `source`."""
        del home
        if source is not None:
            archive.unpack(source, new, progress)

    def copy(self, home: Path, new_home: Path, new: Path, progress: Progress) -> None:
        """Copy fs/."""
        del new_home
        file.copy_tree(home / "fs", new, progress)

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
        gone = home / "fs.gone"
        base.check_unmounted(home)
        progress.check()
        file.remove_tree(gone)
        if self.present(home):
            (home / "fs").rename(gone)
        file.remove_tree(gone)
        file.remove_tree(home / "fs.new")
        tree.unmark(home, self.layout)

    def no_size(self) -> Unsupported:
        """Return why: a directory has no size."""
        return Unsupported(
            "A container in a plain directory (simfs) cannot be given a disk size on this node",
            details="simfs has no quota here: df inside shows the space of the whole pool.",
            hint="Leave the size out, or use a layout with a disk image.",
        )
