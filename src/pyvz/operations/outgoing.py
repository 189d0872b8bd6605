"""The disks of an environment that goes to another node: how each travels, round by round.

An image is copied by reflink at one moment (for which its file system is frozen), and read from the
copy; a later round sends what differs between two copies.  A tree is read where it is mounted.  A
disk with snapshots goes with all its files, as they are, which only works while nothing runs.
What a home has beside its disks goes as one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from pyvz.errors import InvalidState, MigrationError, PrivateMissing, Unsupported
from pyvz.linux import file, mount
from pyvz.migration import blocks, tree
from pyvz.migration.dial import Peer
from pyvz.migration.offer import HOME, IMAGE, TREE, DiskOffer
from pyvz.model.environment import Environment, Kind
from pyvz.model.task import Progress
from pyvz.operations import departure, diskmount, home, machineoffer
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store import savedstates

_BESIDE: Final = ("scripts", "templates", "Snapshots.xml")
_REST: Final = "rest"  # the name under which everything beside the disks travels


class Outgoing:
    """One disk on its way out; a context manager."""

    def __init__(self, node: Node, env: Environment, disk: DiskOffer, peer: Peer) -> None:
        self._node, self._env = node, env
        self.disk = disk
        self.channel = peer.new_channel()
        self._stack = ExitStack()
        self._before: blocks.Image | None = None
        self._next: blocks.Image | None = None
        self._number = 0
        if disk.form == IMAGE:
            self._blocks = blocks.Sender(self.channel)
        else:
            self._files = self._stack.enter_context(tree.Sender(self.channel))

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def size(self) -> int | None:
        """Return the size that the other side is to make; of an image, from its first copy."""
        if self.disk.form != IMAGE:
            return self.disk.size
        self._next = self._copy()
        return self._next.size

    def arm(self) -> None:
        """Have the next round, of one that runs, begin at once when it is sent."""
        if self.disk.form == TREE:
            self._files.arm(self._node.root(self._env))

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send one round; returns its bytes."""
        if self.disk.form == IMAGE:
            return self._image(progress)
        if self.disk.form == HOME:
            names = _names(self._env, self.disk)
            self._files.send(self._env.home, progress, still=True, names=names)
        else:
            with _shown(self._node, self._env) as root:
                self._files.send(root, progress, still=still)
        return self._files.last

    def _image(self, progress: Progress) -> int:
        image = self._next or self._copy()
        self._next = None
        if self._before is not None and image.size != self._before.size:
            raise MigrationError(f"The disk {self.disk.name} was resized meanwhile")
        self._blocks.send(image, self._before, progress)
        self._before = image
        return self._blocks.last

    def _copy(self) -> blocks.Image:
        """Copy the image as it is at this moment.

        Open, the copy needs no name any more: whoever is killed leaves nothing.
        """
        directory = departure.copies_of(self._env)
        directory.mkdir(mode=0o700, exist_ok=True)
        self._number += 1
        path = directory / f"{self.disk.name}.{self._number}"
        driver = storage.find(self._env.home)
        with home.storage_errors(f"The disk {self.disk.name} could not be copied"):
            offset, size = driver.copy_image(self._env.home, path, disk=self.disk.name)
        try:
            return self._stack.enter_context(blocks.opened(path, offset, size))
        finally:
            path.unlink()

    def finish(self) -> None:
        """Say that all was sent."""
        if self.disk.form == IMAGE:
            self._blocks.finish(self._before.size if self._before else 0)
        else:
            self._files.finish()


def _names(env: Environment, disk: DiskOffer) -> tuple[str, ...]:
    """Return the names in the home that travel under one offer."""
    if env.kind == Kind.VM:
        return machineoffer.names(env, disk)
    if disk.name == _REST:
        names = [name for name in _BESIDE if (env.home / name).exists()]
        if (env.home / "dump" / "Dump").exists():
            names.append("dump")
        return tuple(names) or ("scripts",)
    return (disk.name, storage.LAYOUT_LINK)


@contextmanager
def _shown(node: Node, env: Environment) -> Iterator[Path]:
    """Yield the mounted root; one that is not mounted is, read-only, for the block."""
    root = node.root(env)
    if mount.is_mount_point(root):
        yield root
        return
    place = departure.shown_at(node, env)
    driver = storage.find(env.home)
    driver.mount(env.home, place, readonly=True)
    try:
        yield place
    finally:
        driver.umount(env.home, place)
        place.rmdir()


def layout(env: Environment) -> str:
    try:
        return storage.find(env.home).name
    except PrivateMissing:
        return ""


def offers(node: Node, env: Environment, *, running: bool) -> tuple[DiskOffer, ...]:
    """Return in which form each disk travels; raises Unsupported."""
    rest = DiskOffer(_REST, HOME, "", None, 0)
    try:
        driver = storage.find(env.home)
    except PrivateMissing:
        if (env.home / "ve.conf").is_file():
            return (rest,)
        raise
    able = driver.capabilities(env.home)
    names = [storage.ROOT_DISK]
    if able.disks:
        names = storage.many_disks(driver, env.home).disks(env.home)
    for name, entry in _outside(node, env):
        raise Unsupported(
            f"The disk {name} of {env.name} is outside of its private area ({entry})",
            hint="Move it inside, or take it away first.",
        )
    if savedstates.load(env.home).items:
        return (*_whole(env, driver, names, running=running), rest)
    if able.image:
        disks = tuple(_image_offer(env, driver, name) for name in names)
        return (*disks, rest)
    limit = storage.limit(driver, env.home)
    used = driver.usage(env.home).used if able.df_exact else file.tree_size(env.home)
    return (DiskOffer(storage.ROOT_DISK, TREE, driver.name, limit, used), rest)


def _image_offer(env: Environment, driver: storage.StorageDriver, name: str) -> DiskOffer:
    used = file.tree_size(env.home / name)
    return DiskOffer(name, IMAGE, driver.name, None, used)


def _whole(
    env: Environment, driver: storage.StorageDriver, names: list[str], *, running: bool
) -> tuple[DiskOffer, ...]:
    """Return the disks of one with snapshots: all their files go, while it stands still."""
    if not driver.capabilities(env.home).disks:
        raise Unsupported(f"Snapshots of layout {driver.name} cannot be migrated")
    if running:
        raise InvalidState(
            f"{env.name} has snapshots and runs: it cannot be migrated so",
            hint="Stop it, or delete the snapshots first (prlctl snapshot-list).",
        )
    return tuple(
        DiskOffer(name, HOME, driver.name, None, file.tree_size(env.home / name)) for name in names
    )


def _outside(node: Node, env: Environment) -> Iterator[tuple[str, str]]:
    for disk in diskmount.disks_of(env, node.registry.config(env)):
        if not disk.own:
            yield disk.name, disk.entry.image
