"""The disks of a virtual machine that does not run, shown on the node: `prlctl mount`.

    <run>/vm-mount/<uuid>/     of the storage daemon (storage/daemon.py), which reads the image
    image -- daemon --> a raw file (FUSE) -- loop device on the root partition --> <vz>/root/<uuid>

A guest's file system is hostile: whoever mounts it lets the node's kernel read what a guest has
made.  So it is mounted read-only unless asked, and always without devices, set-uid programs and
programs at all (nodev, nosuid, noexec).  The daemon lives on when vzd dies, as the mount does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvz.errors import MountError, NotFound, Unsupported
from pyvz.image import partitions
from pyvz.image.partitions import Partition
from pyvz.linux import filesystem, loopdevice, mount, syscall
from pyvz.linux.loopdevice import Loop
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.operations import machinedrives, machinekeys
from pyvz.operations.node import Node
from pyvz.storage import attach, bundle, daemontest
from pyvz.storage.daemon import NODE, Daemon
from pyvz.storage.daemon import Node as Block
from pyvz.vm import image

_FLAGS: Final = syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC
# The journal of a guest that did not shut down is not replayed into an image that is only read.
_UNREPLAYED: Final = {"ext4": "noload", "xfs": "norecovery,nouuid"}
_REPLAYED: Final = {"xfs": "nouuid"}


def daemon_of(node: Node, uuid: str) -> Daemon:
    """Return the daemon that shows a machine's disk."""
    return Daemon(node.paths.run / "vm-mount" / uuid)


def mount_root(node: Node, env: Environment, *, readonly: bool) -> Path:
    """Mount the root file system of a machine that does not run; returns where.

    It is the largest one that this node knows on the first disk.  The caller holds the lease.
    Raises NotFound (no disk, no file system), MountError, Unsupported, Busy.
    """
    target = node.root(env)
    drive = _first_disk(node, env)
    daemon_of(node, env.uuid).directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def mount_it(loop: Loop, kind: str) -> None:
        target.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = _FLAGS | (syscall.MS_RDONLY if readonly else 0)
        options = (_UNREPLAYED if readonly else _REPLAYED).get(kind)
        mount.mount(loop.device, target, kind, flags=flags, data=options)

    try:
        _shown(node, env, drive, mount_it, readonly=readonly)
    except BaseException:
        with contextlib.suppress(OSError):
            target.rmdir()
        raise
    return target


def mount_image(path: Path, target: Path, name: str) -> None:
    """Mount the root file system in a raw image of the machine NAME, read-only, until `umount`."""
    part, kind = root_of(path, name)
    with loopdevice.attached(path, part.offset, part.size, readonly=True) as loop:
        flags = _FLAGS | syscall.MS_RDONLY
        mount.mount(loop.device, target, kind, flags=flags, data=_UNREPLAYED.get(kind))


def umount_root(node: Node, env: Environment) -> None:
    """Take away what `mount_root` made, or what is left of it; idempotent.  Raises Busy."""
    target = node.root(env)
    if mount.is_mount_point(target):
        mount.umount(target)
    attach.finish(daemon_of(node, env.uuid))
    with contextlib.suppress(OSError):
        target.rmdir()


def repair(node: Node, env: Environment) -> None:
    """Take away what a death has left of a mount that was not made; the lease is held."""
    if daemon_of(node, env.uuid).directory.is_dir() and not mount.is_mount_point(node.root(env)):
        umount_root(node, env)


def _first_disk(node: Node, env: Environment) -> Drive:
    config = node.registry.config(env)
    disks = sorted((each for each in config.machine.drives if each.is_disk), key=lambda d: d.name)
    if not disks:
        raise NotFound(f"{env.name} has no disk that could be mounted")
    return disks[0]


def blocks_of(env: Environment, drive: Drive, *, readonly: bool) -> list[Block]:
    """Return the block nodes by which a storage daemon shows a disk; raises what speaks against it.

    An image never decides what else is opened: what is below it is always said, also "nothing".
    """
    path = machinedrives.source_of(env, drive)
    if drive.device:
        raise Unsupported(f"{drive.name} is a device of this node ({path}): mount it yourself")
    if drive.format == machinedrives.BUNDLE:
        place = bundle.find(path)
        file, disk = _layer(NODE, place.image, "raw", None, readonly=readonly)
        return [file, {**disk, "offset": place.offset}]
    keyed = bool(drive.keyid)
    image.check(image.look(path), path, drive.format, base=bool(drive.base), keyed=keyed)
    made: list[Block] = []
    if drive.base:
        base = machinedrives.path_of(env, drive.base)
        image.check(image.look(base), base, "qcow2")
        made += _layer("base", base, "qcow2", None, readonly=True)
    below = "base" if drive.base else None
    made += _layer(NODE, path, drive.format, below, readonly=readonly)
    if keyed:
        secret = machinedrives.secret_of(drive)
        made[-1] = {**made[-1], "encrypt": {"format": "luks", "key-secret": secret}}
    return made


def _layer(name: str, path: Path, kind: str, below: str | None, *, readonly: bool) -> list[Block]:
    file = {"driver": "file", "filename": os.fspath(path), "node-name": f"{name}-file"}
    image_ = {"driver": kind, "file": f"{name}-file", "node-name": name}
    if kind == "qcow2":
        image_ |= {"backing": below}  # type: ignore[dict-item]
    return [{**each, "read-only": readonly} for each in (file, image_)]


def _shown(
    node: Node,
    env: Environment,
    drive: Drive,
    use: Callable[[Loop, str], None],
    *,
    readonly: bool,
) -> None:
    """Show the root partition of a disk as a device, for USE, which mounts it."""
    blocks = blocks_of(env, drive, readonly=readonly)
    daemon = daemon_of(node, env.uuid)
    attach.finish(daemon)
    with contextlib.ExitStack() as opened:
        keys = machinekeys.open_one(node, drive, opened)
        daemon.start(blocks, readonly=readonly, keys=keys)
    try:
        part, kind = root_of(daemon.device, env.name)
        direct = not readonly and daemontest.direct_io(env.home.parent)
        with loopdevice.attached(
            daemon.device, part.offset, part.size, readonly=readonly, direct=direct
        ) as loop:
            use(loop, kind)
    except BaseException:
        with contextlib.suppress(Exception):  # its error is what matters
            attach.finish(daemon)
        raise


def root_of(device: Path, name: str) -> tuple[Partition, str]:
    """Return the largest partition that holds a file system known here, and its type."""
    size = device.stat().st_size
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = partitions.listed(fd, size) or (Partition(0, 0, size),)
    finally:
        os.close(fd)
    known = [(each, filesystem.kind_at(device, each.offset)) for each in found]
    mountable = [(each, kind) for each, kind in known if kind is not None]
    if not mountable:
        raise MountError(
            f"No file system that this node knows is on the first disk of {name}",
            details=f"{len(found)} partitions; ext4 and xfs are known.",
        )
    return max(mountable, key=lambda pair: pair[0].size)
