"""A node on a file system with reflinks, and containers on ploop images in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from homes import TEMPLATE, request
from places import file_system
from pyvz.linux import mount
from pyvz.model.environment import Environment
from pyvz.operations import lifecycle, provision
from pyvz.operations.node import Node
from worlds import make_archive, make_node

SIZE = "512M"


@contextlib.contextmanager
def ploop_node(directory: Path, layout: str = "ploop") -> Iterator[Node]:
    """A node below `directory` with a container `ct1` on a ploop image; nothing runs.

    layout: of its disk, when it is to be another one.
    """
    with file_system("xfs", directory / "n", 3 << 30) as place:
        node = make_node(place)
        cache = node.paths.template / "cache"
        cache.mkdir(parents=True)
        archive = make_archive(directory)
        (cache / archive.name).write_bytes(archive.read_bytes())
        provision.create(node, ploop_request(layout=layout))
        try:
            yield node
        finally:
            take_down(place)


def take_down(place: Path) -> None:
    """Unmount everything below a file system that was made for a test."""
    real = os.path.realpath(place)
    for entry in reversed(mount.mounts(real)):
        if entry.target != real:
            mount.umount(entry.target, lazy=True)


def ploop_request(**fields: object) -> provision.CreateRequest:
    options = (("diskspace", SIZE),)
    known: dict[str, object] = {"layout": "ploop", "options": options, "ostemplate": TEMPLATE}
    return request(**(known | fields))


@contextlib.contextmanager
def mounted(node: Node, ref: str = "ct1") -> Iterator[Path]:
    """The root of a stopped container, mounted for the block."""
    env = lifecycle.mount(node, ref)
    try:
        yield node.root(env)
    finally:
        lifecycle.umount(node, ref)


def write(node: Node, text: str, name: str = "file") -> None:
    with mounted(node) as root:
        (root / name).write_text(text)


def read(node: Node, name: str = "file") -> str:
    with mounted(node) as root:
        return (root / name).read_text() if (root / name).exists() else ""


def digest(path: Path) -> str:
    """The content of a tree of directories and files."""
    found = hashlib.sha256()
    for directory, names, files in os.walk(path):
        names.sort()
        for name in sorted(files):
            file = Path(directory, name)
            if file.is_file() and not file.is_symlink():
                found.update(os.fspath(file.relative_to(path)).encode() + file.read_bytes())
    return found.hexdigest()


def names_of(env: Environment, disk: str = "root.hdd") -> list[str]:
    """The images of a disk."""
    return sorted(x.name for x in (env.home / disk).iterdir() if x.name.startswith("root.hds"))
