"""Directories of disk images that clients call pools, as virt-install makes one for each image.

<etc>/libvirt-pools.json    {name: {"uuid", "path", "autostart", "boot", "active"}}; absent where
                            there are none

What is in a directory is looked at when somebody asks.  Volumes are its regular files; links are
none, as whoever may write there could show the node's files by them.  A pool is active when it was
started, or not stopped, since the node came up (`boot`), and before that when it is for autostart.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvz.errors import VZError
from pyvz.gateway import failure
from pyvz.gateway.failure import Failure
from pyvz.linux import file
from pyvz.linux.process import boot_id
from pyvz.operations.node import Node
from pyvz.vm import image

LIMIT: Final = 1 << 20  # bytes of the file
MOST: Final = 10_000  # files of a directory that are shown
_NAME_LENGTH: Final = 64
_BLOCK: Final = 512  # bytes of st_blocks
_writing = threading.Lock()


class ImagePool(NamedTuple):
    """One directory."""

    name: str
    uuid: str
    path: Path
    autostart: bool = True
    active: bool = True


class ImageFile(NamedTuple):
    """One file: as large as its guest sees it, and what it takes."""

    path: Path
    format: str
    capacity: int
    allocation: int


def known(node: Node) -> list[ImagePool]:
    """Return every directory; none where the file is damaged."""
    try:
        data = json.loads(file.read_text_limited(_file(node), LIMIT))
        return [_read(name, row) for name, row in data.items()]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []


def add(node: Node, made: ImagePool) -> None:
    """Remember a directory, or what it is now; raises Failure for a name or path that is none."""
    fine = made.name.isprintable() and "/" not in made.name and len(made.name) <= _NAME_LENGTH
    if not made.name or not fine:
        raise Failure(failure.XML, f"'{made.name[:80]}' cannot be the name of a pool")
    if not made.path.is_absolute():
        raise Failure(failure.INVALID_ARGUMENT, f"'{made.path}' is no absolute path")
    with _writing:
        pools = [each for each in known(node) if each.name != made.name]
        _save(node, [*pools, made])


def remove(node: Node, name: str) -> None:
    """Forget a directory; nothing in it is touched."""
    with _writing:
        _save(node, [each for each in known(node) if each.name != name])


def files(pool: ImagePool) -> list[ImageFile]:
    """Return the images in a directory, by name."""
    try:
        with os.scandir(pool.path) as entries:
            names = sorted(
                each.name
                for each in entries
                if each.is_file(follow_symlinks=False) and each.name.isprintable()
            )
    except OSError:
        return []
    found = (look(pool.path / name) for name in names[:MOST])
    return [each for each in found if each is not None]


def look(path: Path) -> ImageFile | None:
    """Return what a file is; None for what is gone, or is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    kind, size = "raw", status.st_size
    try:
        header = image.look(path)
        kind, size = header.format, header.size or status.st_size
    except VZError:
        pass  # a torn image is shown as what it is: bytes
    return ImageFile(path, kind, size, status.st_blocks * _BLOCK)


def _file(node: Node) -> Path:
    return node.paths.etc / "libvirt-pools.json"


def _read(name: str, row: Mapping[str, Any]) -> ImagePool:
    autostart = bool(row.get("autostart", True))
    active = bool(row.get("active")) if row.get("boot") == boot_id() else autostart
    return ImagePool(name, str(row["uuid"]), Path(row["path"]), autostart, active)


def _save(node: Node, pools: list[ImagePool]) -> None:
    data = {
        each.name: {
            "uuid": each.uuid, "path": os.fspath(each.path), "autostart": each.autostart,
            "boot": boot_id(), "active": each.active,
        }
        for each in pools
    }  # fmt: skip
    if data:
        file.write_atomic(_file(node), json.dumps(data, indent=1) + "\n", 0o644)
    else:
        _file(node).unlink(missing_ok=True)
