"""The disks of an environment that goes to another node: which there are, and how each travels.

How a form is sent is in outgoingdisk.py.  The snapshots of a disk go first in its streams, or as
images, each by its difference; where they can be neither it goes with all its files, as they are,
which only works while nothing runs.
What a home has beside its disks goes as one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from pyvz.errors import InvalidState, PrivateMissing, Unsupported
from pyvz.linux import file, mount
from pyvz.migration import tree
from pyvz.migration.dial import Peer
from pyvz.migration.offer import HOME, IMAGE, STREAM, TREE, DiskOffer
from pyvz.model.environment import Environment, Kind
from pyvz.model.task import Progress
from pyvz.operations import departure, diskmount, machineoffer
from pyvz.operations.node import Node
from pyvz.operations.outgoingdisk import Copies, Files, Sender, Shots, Streams
from pyvz.storage import base as storage
from pyvz.storage import shots as shotimages
from pyvz.store import savedstates

_BESIDE: Final = ("scripts", "templates", "Snapshots.xml")
_REST: Final = "rest"  # the name under which everything beside the disks travels


class Outgoing:
    """One disk on its way out; a context manager."""

    def __init__(self, node: Node, env: Environment, disk: DiskOffer, peer: Peer) -> None:
        self.disk = disk
        self._root = node.root(env)
        self.channel = peer.new_channel()
        self._stack = ExitStack()
        try:
            self._sender = self._made(node, env)
        except BaseException:
            self._stack.close()
            raise

    def _made(self, node: Node, env: Environment) -> Sender:
        disk, channel, stack = self.disk, self.channel, self._stack
        if disk.form == HOME:
            names = _names(env, disk)
            return Files(disk, self._tree(node, env), lambda: nullcontext(env.home), names)
        if disk.form == STREAM:
            return Streams(env, disk.size, channel, stack)
        if disk.form != IMAGE:
            return Files(disk, self._tree(node, env), lambda: _shown(node, env))
        if storage.find(env.home).capabilities(env.home).image:
            return Copies(env, disk, channel, stack)
        return Shots(env, disk, channel, stack)

    def _tree(self, node: Node, env: Environment) -> tree.Sender:
        state = departure.seen_at(node, env) / self.disk.name
        return self._stack.enter_context(tree.Sender(self.channel, state))

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def size(self) -> int | None:
        """Return the size that the other side is to make."""
        return self._sender.size()

    def arm(self) -> None:
        """Have the next round, of one that runs, begin at once when it is sent."""
        if self.disk.form != HOME:
            self._sender.arm()
        if self.disk.form == IMAGE and self.disk.name == storage.ROOT_DISK:
            file.syncfs(self._root)  # what is written now need not be when it stands still

    def still(self) -> None:
        """It stands still, and CRIU has not looked at it yet: see Sender."""
        self._sender.still()

    def send(self, *, still: bool, progress: Progress) -> int:
        """Send one round; returns its bytes."""
        return self._sender.send(still=still or self.disk.form == HOME, progress=progress)

    def finish(self) -> None:
        """Say that all was sent."""
        self._sender.finish()


def _names(env: Environment, disk: DiskOffer) -> tuple[str, ...]:
    """Return the names in the home that travel under one offer."""
    if env.kind == Kind.VM:
        return machineoffer.names(env, disk)
    if disk.name == _REST:
        names = [name for name in _BESIDE if (env.home / name).exists()]
        if (env.home / "dump" / "Dump").exists() or savedstates.load(env.home).items:
            names.append("dump")
        return tuple(names) or ("scripts",)
    many = storage.many_disks(storage.find(env.home), env.home)
    own = many.place(env.home, disk=disk.name).name
    below = {disk.name} if (env.home / disk.name).is_dir() else set()  # of a qcow2 disk
    return (*sorted({own} | below), storage.LAYOUT_LINK)


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
    shots = savedstates.load(env.home).items
    if shots and not (able.streams or able.shot_images):
        return (*_whole(env, driver, names, running=running), rest)
    if able.restore and (able.image or able.changed_blocks):
        disks = tuple(_image_offer(env, driver, name) for name in names)
        return (*disks, rest)
    limit = storage.limit(driver, env.home)
    used = driver.usage(env.home).used if able.df_exact else file.tree_size(env.home)
    if able.reflink:
        used //= len(shots) + 1  # snapshots share most of what they have
    form = STREAM if able.streams else TREE
    return (DiskOffer(storage.ROOT_DISK, form, driver.name, limit, used), rest)


def _image_offer(env: Environment, driver: storage.StorageDriver, name: str) -> DiskOffer:
    place = env.home / name
    if driver.capabilities(env.home).disks:
        place = storage.many_disks(driver, env.home).place(env.home, disk=name)
    known = shotimages.of(driver, env.home)
    shots = shotimages.Shots() if known is None else known.shots(env.home, disk=name)
    used = file.tree_size(place)
    if driver.capabilities(env.home).image:
        used //= len(shots.images) + 1  # whole images, which share most of what they have
    return DiskOffer(name, IMAGE, driver.name, None, used, shots)


def _whole(
    env: Environment, driver: storage.StorageDriver, names: list[str], *, running: bool
) -> tuple[DiskOffer, ...]:
    """Return the disks of one with snapshots: all their files go, while it stands still."""
    if not driver.capabilities(env.home).disks:
        raise Unsupported(
            f"{env.name} has snapshots, and those of layout {driver.name} cannot be migrated here",
            hint="Delete them first (prlctl snapshot-list), or give it another layout: "
            "prlctl convert --layout.",
        )
    if running:
        raise InvalidState(
            f"{env.name} has snapshots and runs: it cannot be migrated so",
            hint="Stop it, or delete the snapshots first (prlctl snapshot-list).",
        )
    many = storage.many_disks(driver, env.home)
    return tuple(
        DiskOffer(name, HOME, driver.name, None, file.tree_size(many.place(env.home, disk=name)))
        for name in names
    )


def _outside(node: Node, env: Environment) -> Iterator[tuple[str, str]]:
    for disk in diskmount.disks_of(env, node.registry.config(env)):
        if not disk.own:
            yield disk.name, disk.entry.image
