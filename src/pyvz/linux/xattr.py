"""The extended attributes of a file that a copy of it keeps.

xfs shows each ACL a second time, in its own form (trusted.SGI_ACL_FILE beside
system.posix_acl_access; xfs_xattr_put_listent() in fs/xfs/xfs_xattr.c), to whoever may read trusted
attributes.  On another file system that is an attribute that nobody asks for, and a copy that has
it differs from one that has not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

OF_XFS: Final = "trusted.SGI_"


def names(path: str | Path) -> list[str]:
    """Return the names of those of a file, or of the link itself; raises OSError."""
    found = os.listxattr(path, follow_symlinks=False)
    return [name for name in found if not name.startswith(OF_XFS)]
