"""Removal of homes for which nobody waits: many files take their time.

    <lib>/graves/<name>    a link to the directory `<name>` that is being removed; made before it is

What a death has left is removed by the next vzd (`resume`).
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from uuid import uuid4

from pyvz.errors import VZError
from pyvz.linux import file
from pyvz.model.task import NoProgress
from pyvz.operations import home
from pyvz.operations.node import Node

log = logging.getLogger(__name__)


def bury(node: Node, directory: Path) -> None:
    """Take a home away at once, and remove it in a thread; nothing there is fine."""
    if not directory.exists():
        return
    graves = _graves(node)
    graves.mkdir(mode=0o700, parents=True, exist_ok=True)
    link = graves / f".gone-{uuid4()}"
    grave = directory.with_name(link.name)
    link.symlink_to(grave)
    file.fsync_directory(graves)
    directory.rename(grave)
    file.fsync_directory(grave.parent)
    _begin(link)


def resume(node: Node) -> None:
    """Go on with what a vzd that has died left (start of vzd)."""
    graves = _graves(node)
    for link in list(graves.iterdir()) if graves.is_dir() else []:
        _begin(link)


def _graves(node: Node) -> Path:
    return node.paths.lib / "graves"


def _begin(link: Path) -> None:
    threading.Thread(target=_remove, args=(link,), name=f"bury{link.name}", daemon=True).start()


def _remove(link: Path) -> None:
    grave = link.readlink()
    try:
        home.dismantle(grave, NoProgress())
        link.unlink(missing_ok=True)
    except (VZError, OSError) as error:
        log.warning("%s could not be removed yet: %s", grave, error)
