"""Where the homes of new containers go, and the pool that the node makes for itself.

Images want a file system that can share blocks.  Where the parent of VE_PRIVATE can, homes go
there as ever.  Else they go to <vz>/pool/default, which is an xfs of the node's own
(storage/embedded.py); VE_PRIVATE in their ve.conf says so, and /vz/private stays as it is, with
the containers that are in it.  Where that pool cannot be had, images lie in /vz/private without
sharing.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pyvz.errors import VZError
from pyvz.linux import filesystem, mount
from pyvz.linux.features import reflink_at
from pyvz.model.vzconf import expand_veid, under
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.storage import embedded
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

_PLAIN = "simfs"


def private_for(node: Node, driver: str) -> str:
    """Return VE_PRIVATE, with $VEID in it, for a new home whose disk `driver` makes."""
    usual = node.config().ve_private
    if driver != "ploop":
        return usual
    parent = _existing(under(node.paths.root, expand_veid(usual, "x")).parent)
    if reflink_at(parent):
        return usual
    try:
        place = embedded.ensure(node.paths)
    except (VZError, OSError) as error:
        log.warning("no pool of the node's own, images will share no blocks: %s", error)
        return usual
    return f"/{place.relative_to(node.paths.root)}/$VEID"


def default_driver(wanted: str) -> str:
    """Return the storage driver that VELAYOUT means, or simfs where that cannot work."""
    if wanted not in storage.names():
        log.warning("vz.conf: there is no storage driver '%s': using %s", wanted, _PLAIN)
        return _PLAIN
    if wanted == "ploop" and (why := storage.why_no_images()):
        log.warning("images cannot be used on this node (%s): using %s", why, _PLAIN)
        return _PLAIN
    return wanted


def thaw_roots(directory: Path) -> None:
    """Thaw what is mounted below `directory`: vzd may have been killed while it made a snapshot."""
    for entry in mount.mounts(directory.resolve()):
        try:
            fd = os.open(entry.target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if filesystem.thaw(fd):
                log.warning("%s was frozen: thawed", entry.target)
        except OSError:
            log.debug("%s cannot be frozen", entry.target)
        finally:
            os.close(fd)


def open_pools(paths: Paths) -> None:
    """Mount the node's own pool, if it has one, and prepare the place of roots; never raises.

    Roots are mounted below a shared mount, so that what is unmounted here goes away in the copies
    that others have of our mounts, too; else such a copy keeps a disk's device for ever.
    """
    try:
        embedded.open_made(paths)
        paths.ve_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not mount.holding_mount(paths.ve_root).shared:
            mount.make_shared(paths.ve_root)
        thaw_roots(paths.ve_root)
    except (VZError, OSError):
        log.exception("the pool of the node could not be opened")


def close_pools(paths: Paths) -> None:
    """Undo `open_pools`: for an end of the node, when nothing is mounted any more; raises Busy."""
    mount.umount(paths.ve_root)
    embedded.close(paths)


def _existing(path: Path) -> Path:
    return path if path.is_dir() else _existing(path.parent)
