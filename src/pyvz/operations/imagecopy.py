"""An image of a ploop disk as it is at one moment, open, for whoever sends it elsewhere."""

from __future__ import annotations

import os
from uuid import uuid4

from pyvz.errors import Unsupported
from pyvz.image import disk as format_
from pyvz.image import identity
from pyvz.image.disk import RAW
from pyvz.operations.image import leased, load
from pyvz.operations.node import Node
from pyvz.storage.ploop import Driver


def opened(node: Node, path: str) -> int:
    """Return a descriptor of a copy of the disk's top image, which has no name any more.

    The disk may be mounted: it is frozen for that moment; blocks are shared where the pool can.
    What a death leaves goes with the next change of the disk.
    Raises Unsupported (raw, thin), Locked, Busy, NoSpace.
    """
    disk = load(path)
    if disk.descriptor.mode == RAW or not identity.is_identity(disk.image()):
        raise Unsupported(
            f"{disk.image()} is not in the form that runs here",
            hint=f"Bring it there first: ploop convert -f preallocated {path}",
        )
    with leased(node, disk.directory, "copy"):
        copy = disk.directory / f"{format_.BASE_FILE}.{{{uuid4()}}}"
        Driver().copy_image(disk.directory.parent, copy, disk=disk.directory.name)
        try:
            return os.open(copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        finally:
            copy.unlink()
