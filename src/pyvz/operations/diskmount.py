"""The disks of a container beside its root disk: where they are, and how they get inside.

    <vz>/root/.disks/<uuid>/<disk>/    each enabled disk is mounted here while the root is mounted
    <vz>/root/<uuid>/<mnt>             ... and bound here; what starts in that tree has it inside

A place inside is resolved by the kernel with the container's root as its root, so links in a
hostile tree lead nowhere else.  Into a running container a disk is brought by a small program
(container/attach.py), since vzd itself never enters one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, Busy, MountError, PrivateMissing, Unsupported
from pyvz.linux import mount, mountwords, namespace, run, syscall
from pyvz.linux.guestroot import GuestRoot
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_disk import DiskEntry
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

ROOT = "hdd0"
_PLACES = ".disks"
_RESOLVE = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS
_IMAGE = re.compile(r"(hdd[1-9][0-9]{0,3})\.hdd")
_ENTER_TIMEOUT = 30.0


class DataDisk(NamedTuple):
    """A disk beside the root disk.

    name: "hdd1", as prlctl calls it.  home, disk: the directory that holds it, and its name there
    (of a disk of the container's own: its home).
    """

    name: str
    entry: DiskEntry
    home: Path
    disk: str

    @property
    def path(self) -> Path:
        """The disk's directory."""
        return self.home / self.disk

    @property
    def own(self) -> bool:
        """Whether it lies in the container's home."""
        return not self.entry.image.startswith("/")


def is_root(entry: DiskEntry) -> bool:
    """Whether an entry of DISK speaks of the root disk."""
    return entry.mnt == "/" or entry.image == storage.ROOT_DISK


def named(entries: Sequence[DiskEntry]) -> dict[str, DiskEntry]:
    """Return the data disks by name: hddN.hdd is hddN, others get the numbers that are free."""
    data = [entry for entry in entries if not is_root(entry)]
    found: dict[str, DiskEntry] = {}
    for entry in data:
        match = _IMAGE.fullmatch(Path(entry.image).name)
        if match is not None:
            found.setdefault(match[1], entry)
    for entry in data:
        if entry not in found.values():
            found[free_name(found)] = entry
    return dict(sorted(found.items(), key=lambda item: int(item[0][3:])))


def free_name(taken: dict[str, DiskEntry]) -> str:
    """Return the first name that no disk has."""
    return next(name for n in range(1, 10000) if (name := f"hdd{n}") not in taken)


def disks_of(env: Environment, config: Config) -> list[DataDisk]:
    """Return the data disks that the configuration names, enabled or not."""
    return [located(env, name, entry) for name, entry in named(config.disk.disks).items()]


def located(env: Environment, name: str, entry: DiskEntry) -> DataDisk:
    """Return where a disk is; raises BadValue for a relative path that is not in the home."""
    if entry.image.startswith("/"):
        path = Path(os.path.normpath(entry.image))
        return DataDisk(name, entry, path.parent, path.name)
    if "/" in entry.image:
        raise BadValue(f"'{entry.image}' of disk {name} is neither in the home nor absolute")
    return DataDisk(name, entry, env.home, entry.image)


def place(node: Node, env: Environment, disk: DataDisk) -> Path:
    """Return where the node mounts the disk: by its UUID, since names may be given anew."""
    return node.paths.ve_root / _PLACES / env.uuid / (disk.entry.uuid or disk.name)


def targets(node: Node, env: Environment) -> list[Path]:
    """Return where disks of `env` are mounted now, whatever its configuration says."""
    top = node.paths.ve_root / _PLACES / env.uuid
    return sorted(top.iterdir()) if top.is_dir() else []


def mount_all(node: Node, env: Environment, config: Config, *, readonly: bool = False) -> None:
    """Mount every enabled disk below the container's mounted root.

    Raises PrivateMissing, Unsupported, MountError; then none stays mounted.
    """
    wanted = [disk for disk in disks_of(env, config) if disk.entry.enabled]
    try:
        # A mount point may lie on another disk: the outer one first.
        for disk in sorted(wanted, key=lambda disk: disk.entry.mnt.rstrip("/").count("/")):
            mount_one(node, env, disk, readonly=readonly)
    except BaseException:
        umount_all(node, env)
        raise


def mount_one(node: Node, env: Environment, disk: DataDisk, *, readonly: bool = False) -> None:
    """Mount a disk at its place, and show it below the root when it has a mount point.

    Raises PrivateMissing, Unsupported, MountError.
    """
    if disk.entry.device:
        raise Unsupported(
            f"{disk.name} of {env.name} is a block device of the node ({disk.entry.device})",
            details="Only disks that are images can be attached by this version.",
            hint=f"Take it out with: prlctl set {env.name} --device-set {disk.name} --disable",
        )
    driver = storage.many_disks(storage.find(env.home), env.home)
    if disk.disk not in driver.disks(disk.home):
        raise PrivateMissing(f"The disk {disk.name} of {env.name} is missing: {disk.path}")
    target = place(node, env, disk)
    words = mountwords.parse(disk.entry.mnt_opts.split(","))
    options = storage.MountOptions(words.rest)
    driver.mount(disk.home, target, readonly=readonly, disk=disk.disk, options=options)
    mountwords.apply(os.fspath(target), words.attributes)
    if not disk.entry.mnt:
        return
    try:
        _show(node.root(env), disk.entry.mnt, target)
    except OSError as error:
        raise MountError(
            f"{disk.name} cannot be mounted at {disk.entry.mnt} of {env.name}: {error.strerror}"
        ) from error


def umount_all(node: Node, env: Environment) -> None:
    """Unmount every data disk of a container that does not run; raises Busy, MountError."""
    for target in reversed(targets(node, env)):
        _umount(node, env, target)
    with suppress(OSError):
        (node.paths.ve_root / _PLACES / env.uuid).rmdir()


def umount_one(node: Node, env: Environment, disk: DataDisk) -> None:
    """Unmount one data disk on the node; nothing mounted is fine.  Raises Busy, MountError."""
    _umount(node, env, place(node, env, disk), disk)


def _umount(node: Node, env: Environment, target: Path, disk: DataDisk | None = None) -> None:
    entry = mount.mount_at(target)
    if entry is not None:
        _hide(node.root(env), entry.device)
        known = disk or _placed_at(node, env, target)
        if known is None:
            mount.umount(target)
        else:
            driver = storage.many_disks(storage.find(env.home), env.home)
            driver.umount(known.home, target, disk=known.disk)
    with suppress(OSError):
        target.rmdir()


def _placed_at(node: Node, env: Environment, target: Path) -> DataDisk | None:
    disks = disks_of(env, node.registry.peek(env))
    return next((disk for disk in disks if place(node, env, disk) == target), None)


def _show(root: Path, mnt: str, source: Path) -> None:
    """Bind `source` at the directory `mnt` inside `root`, which is made when missing; OSError."""
    with GuestRoot.open(root) as guest:
        guest.mkdir(mnt, parents=True)
        inside = mnt.strip("/") or "."
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        directory = syscall.openat2(guest.fileno(), inside, flags, 0, _RESOLVE)
    with ExitStack() as stack:
        stack.callback(os.close, directory)
        if os.fstat(directory).st_dev == source.stat().st_dev:
            return  # there already
        tree = syscall.open_tree(syscall.AT_FDCWD, source, syscall.OPEN_TREE_CLONE)
        stack.callback(os.close, tree)
        both = syscall.MOVE_MOUNT_F_EMPTY_PATH | syscall.MOVE_MOUNT_T_EMPTY_PATH
        syscall.move_mount(tree, "", directory, "", both)


def _hide(root: Path, device: tuple[int, int]) -> None:
    """Take the binds of a disk below the container's root away.

    Lazily: the disk's own mount, not this one, says whether it is in use.
    """
    for entry in reversed(mount.mounts(os.path.realpath(root))):
        if entry.device == device:
            syscall.umount2(entry.target, syscall.UMOUNT_NOFOLLOW | syscall.MNT_DETACH)


# -- into and out of a running container


def attach(node: Node, env: Environment, disk: DataDisk) -> None:
    """Mount a disk and make it appear in the running container; raises MountError.

    What fails leaves nothing mounted.
    """
    mount_one(node, env, disk)
    try:
        if disk.entry.mnt:
            _enter(node, env, "attach", os.fspath(place(node, env, disk)), disk.entry.mnt)
    except BaseException:
        umount_one(node, env, disk)
        raise


def detach(node: Node, env: Environment, disk: DataDisk) -> None:
    """Take a disk out of the running container and unmount it; raises Busy: nothing changed."""
    entry = mount.mount_at(place(node, env, disk))
    if entry is None:
        return
    if disk.entry.mnt:
        _enter(node, env, "detach", f"{entry.device[0]}:{entry.device[1]}", disk.entry.mnt)
    umount_one(node, env, disk)


def _enter(node: Node, env: Environment, verb: str, what: str, mnt: str) -> None:
    """Run the program that attaches or detaches inside; raises MountError, Busy."""
    init = node.runtime.running(env.uuid).get(env.uuid)
    if init is None:
        return
    mapped = namespace.identity(init.pid, "user") != namespace.identity(os.getpid(), "user")
    argv = [sys.executable, "-I", "-m", "pyvz.container.attach", verb, str(init.pid)]
    argv += [str(init.start_time), "mapped" if mapped else "plain", what, mnt]
    result = run.run(argv, timeout=_ENTER_TIMEOUT, check=False)
    if result.code == 0:
        return
    said = result.stderr.strip().rpartition("\n")[2]
    if result.code == 16:  # EBUSY
        raise Busy(f"{mnt} in {env.name} is in use", hint="A program inside has files open there.")
    raise MountError(f"{mnt} in {env.name} could not be changed: {said or result.code}")
