"""Ploop disks of the node in use: attached, mounted, their snapshots.

The work is done by the storage driver of containers (storage/ploop.py), which knows a disk by its
directory; here are its disks outside of containers, and the bookkeeping around it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from pyvz.errors import (
    BadValue,
    InvalidState,
    MountError,
    NotFound,
    NotMounted,
    StorageError,
    Unsupported,
    UsageError,
    VZError,
)
from pyvz.image import identity
from pyvz.image.delta import stack
from pyvz.image.disk import NAME, RAW, TEMPORARY, Shot, normal_guid
from pyvz.linux import filesystem, loopdevice, mount, mountwords, syscall
from pyvz.model.task import NoProgress
from pyvz.operations import imagedevice, machinehdd
from pyvz.operations.image import Disk, held, leased, load, owner
from pyvz.operations.node import Node
from pyvz.storage import ploopdisk, qcow2adopt
from pyvz.storage.base import DiskUsage, MountOptions
from pyvz.storage.ploop import Driver
from pyvz.store import savedstates


class Attached(NamedTuple):
    """A loop device above an image, and where it is mounted (empty: nowhere)."""

    device: str
    image: str
    target: str


class Shown(NamedTuple):
    """A row of the list of snapshots.  current: the top, or with `snapshots` the one below it."""

    uuid: str
    parent_uuid: str
    current: bool
    fname: str


def _usable(disk: Disk) -> None:
    """Raise Unsupported unless all images can be used where they stand."""
    qcow2adopt.refuse_below(disk.directory)
    thin = disk.descriptor.mode == RAW or not all(
        identity.is_identity(disk.directory / image.file) for image in disk.descriptor.images
    )
    if thin:
        raise Unsupported(
            f"The disk {disk.directory} is thin or raw, and cannot be used as it is on this node",
            hint=f"Convert it: ploop convert -f preallocated {disk.directory}/{NAME}",
        )


class Way(NamedTuple):
    """How a disk is attached: target: where it is mounted (None: nowhere); guid: a snapshot.

    words: mount options.  fstype: what must be in it.  below: images of a stack, the base first.
    raw: the file is a disk without a header.
    """

    target: str | None = None
    readonly: bool = False
    guid: str | None = None
    fsck: bool = False
    words: tuple[str, ...] = ()
    fstype: str = ""
    below: tuple[str, ...] = ()
    raw: bool = False


def attach(node: Node, path: str, way: Way) -> Attached:
    """Attach the top of a disk, or a snapshot of it read-only, and mount it if a target is given.

    PATH may be an image without a descriptor too, the top of the stack `way.below`.  Attached
    without a target, the device stays until `detach`.
    Raises Busy, AlreadyMounted, MountError, Unsupported (thin), BadValue (another file system).
    """
    if not Path(path).is_dir() and not path.endswith(".xml"):
        _check_stack(path, way)
        return _attach_file(node, Path(path), way)
    disk = load(path)
    d = disk.descriptor
    if d.mode == RAW:
        return _attach_file(node, disk.image(way.guid), way._replace(raw=True))
    _usable(disk)
    guid = d.chain()[0].guid if way.guid == "base" else way.guid
    snapshot = guid is not None and normal_guid(guid) != d.top
    image = disk.image(guid)
    if way.target is None or not snapshot:
        return _attach_file(node, image, way._replace(readonly=way.readonly or snapshot))
    _check_kind(image, ploopdisk.part_of(image).kind, way.fstype)
    with leased(node, disk.directory, "mount"):
        target = Path(way.target)
        Driver().mount_snapshot(disk.directory.parent, guid or "", target, disk=disk.directory.name)
        _apply(target, mountwords.parse(way.words), way)
    return _attached(image)[-1]


def _check_stack(path: str, way: Way) -> None:
    """Raise unless PATH, over the images below it, is the whole disk: then it hides them all."""
    if not way.below:
        return
    files = [Path(each) for each in (*way.below, path)]
    with stack(files) as found:
        size = found.size
    if not identity.is_identity(files[-1]):
        raise Unsupported(
            f"{path} is thin: a stack of deltas cannot be mounted as it is on this node",
            hint="Write its DiskDescriptor.xml, and convert it: ploop convert -f preallocated",
        )
    if identity.size(files[-1]) != size:
        raise InvalidState(f"{path} is a disk of another size than {files[0]}")


def _attach_file(node: Node, image: Path, way: Way) -> Attached:
    image = image.parent.resolve() / image.name
    words = mountwords.parse(way.words)
    readonly = way.readonly or bool(words.attributes & syscall.MOUNT_ATTR_RDONLY)
    with leased(node, image.parent, "mount", stopped=True):
        imagedevice.check_free(image)
        part = imagedevice.raw_part(image) if way.raw else ploopdisk.part_of(image)
        _check_kind(image, part.kind, way.fstype)
        if way.fsck and not readonly:
            _fsck(image, part, way)
        if way.target is None:
            if not (readonly or way.raw):
                identity.set_in_use(image)
            loopdevice.attach(image, part.offset, part.size, readonly=readonly)
        elif way.raw:
            _mount_raw(image, part, Path(way.target).resolve(), words.rest, readonly=readonly)
        else:
            target, options = Path(way.target).resolve(), MountOptions(words.rest)
            ploopdisk.mount_image(image, target, options, readonly=readonly)
        if way.target is not None:
            _apply(Path(way.target).resolve(), words, way)
    return _attached(image)[-1]


def _fsck(image: Path, part: ploopdisk.Part, way: Way) -> None:
    if not way.raw:
        ploopdisk.recover(image)
        return
    with loopdevice.attached(image, part.offset, part.size) as loop:
        whole = filesystem.check(loop.device, part.kind or "")
    ploopdisk.wait_detached(image)
    if not whole:
        raise StorageError(f"The file system in {image} is damaged and needs a decision")


def _mount_raw(
    image: Path, part: ploopdisk.Part, target: Path, words: tuple[str, ...], *, readonly: bool
) -> None:
    if part.kind is None:
        raise StorageError(f"There is no file system of a known kind in {image}")
    sector = filesystem.sector_at(image, part.offset)
    with loopdevice.attached(
        image, part.offset, part.size, readonly=readonly, sector=sector
    ) as loop:
        ploopdisk.place(
            filesystem.mount_detached(loop.device, part.kind, readonly=readonly, options=words),
            target,
        )


def _check_kind(image: Path, kind: str | None, wanted: str) -> None:
    if wanted and wanted != kind:
        raise BadValue(f"{image} holds {kind or 'no file system that is known'}, not {wanted}")


def _apply(target: Path, words: mountwords.MountWords, way: Way) -> None:
    """Give the new mount its attributes; what refuses them is unmounted again."""
    try:
        mountwords.apply(os.fspath(target), words.attributes)
    except OSError as error:
        mount.umount(target)
        options = ",".join(way.words)
        raise MountError(f"{target} could not be mounted with {options}") from error


def detach(node: Node, *, path: str = "", device: str = "", target: str = "") -> str:
    """Unmount a disk wherever it is mounted, and detach it; return the device.

    Named by its descriptor or image, its device, or a mount point.
    Raises NotMounted, Busy, InvalidState (it belongs to a container that runs).
    """
    image = _image_of(path, device, target)
    with leased(node, image.parent, "umount", stopped=True):
        places = imagedevice.places(image)
        if not places:
            raise NotMounted(f"{image} is not mounted")
        for place in places:
            for each in reversed(place.targets):
                mount.umount(each)
            loopdevice.detach(place.loop.device)
        if _is_ours(image) and identity.in_use(image):
            identity.clear_in_use(image)
    return os.fspath(places[0].loop.device)


def _image_of(path: str, device: str, target: str) -> Path:
    if path:
        if Path(path).is_dir() or path.endswith(".xml"):
            return load(path).image()
        return Path(path).resolve()
    for image in loopdevice.backing_files():
        for found in _attached(image):
            if (device and found.device == device) or (target and found.target == target):
                return image
    raise NotMounted(f"No image is mounted at {device or target}")


def attached() -> list[Attached]:
    """Return every loop device above a ploop image of this machine."""
    return [row for path in loopdevice.backing_files() if _is_ours(path) for row in _attached(path)]


def _attached(image: Path) -> list[Attached]:
    return [
        Attached(os.fspath(loop.device), os.fspath(image), targets[0] if targets else "")
        for loop, targets in imagedevice.places(image)
    ]


def _is_ours(path: Path) -> bool:
    try:
        return identity.size(path) > 0
    except (OSError, VZError):
        return False


def usage(node: Node, path: str) -> DiskUsage:
    """Return how full the file system of a disk is, mounted or not."""
    del node
    disk = load(path)
    _usable(disk)
    return Driver().usage(disk.directory.parent, disk=disk.directory.name)


def discard(node: Node, path: str) -> int:
    """Give the free space of a disk's file system back to the node; return the bytes freed."""
    if machine := machinehdd.bundle_at(node, path):
        return machinehdd.convert(node, machine, NoProgress(), plain=False)
    disk = load(path)
    _usable(disk)
    with leased(node, disk.directory, "discard"):
        return Driver().compact(disk.directory.parent, disk=disk.directory.name)


# Snapshots


def snapshots(
    node: Node, path: str, *, guid: str | None = None, below_top: bool = False
) -> list[Shown]:
    """Return the snapshots and the top, or the line from GUID down to the base.

    below_top: the one below the top counts as the current one, and the top is left out.
    """
    del node
    d = load(path).descriptor
    shots: list[Shot] = list(d.snapshots)
    if guid is not None:
        shots = [d.shot(image.guid) for image in reversed(d.chain(guid))]
    current = d.shot(d.top).parent if below_top else d.top
    return [
        Shown(each.guid, each.parent, each.guid == current, d.file_of(each.guid)) for each in shots
    ]


def snapshot(node: Node, path: str, guid: str | None = None) -> str:
    """Take a snapshot, also of a disk that is mounted; return its GUID."""
    disk = load(path)
    _usable(disk)
    wanted = normal_guid(guid) if guid else f"{{{uuid4()}}}"
    with leased(node, disk.directory, "snapshot"):
        Driver().snapshot(disk.directory.parent, wanted, disk=disk.directory.name)
    return wanted


def temporary(node: Node, path: str, guid: str) -> Attached:
    """Take a snapshot that is only wanted for a while, and attach it read-only.

    It is marked in the descriptor; `end_temporary` takes it away.
    """
    made = snapshot(node, path, guid)
    with held(node, path, "tsnapshot", online=True) as disk:
        disk.save(disk.descriptor.with_mark(made, TEMPORARY[0]))
    return attach(node, path, Way(guid=made, readonly=True))


def end_temporary(node: Node, path: str) -> str:
    """Detach the temporary snapshots of a disk and delete them; return the first device.

    Raises NotMounted when there is none.
    """
    disk = load(path)
    marked = [each.guid for each in disk.descriptor.snapshots if each.temporary]
    if not marked:
        raise NotMounted(f"{path} has no temporary snapshot")
    devices = []
    for guid in marked:
        image = disk.image(guid)
        if imagedevice.places(image):
            devices.append(detach(node, path=os.fspath(image)))
        delete(node, path, guid)
    return devices[0] if devices else ""


def switch(node: Node, path: str, guid: str) -> None:
    """Make the disk what it was at a snapshot; what the top holds now is lost."""
    disk = load(path)
    _usable(disk)
    with leased(node, disk.directory, "snapshot-switch", stopped=True):
        Driver().switch(disk.directory.parent, guid, disk=disk.directory.name)


def delete(node: Node, path: str, guid: str) -> None:
    """Delete a snapshot; those above it stay what they are.

    Raises InvalidState for one of a container, whose other disks and memory go with it.
    """
    disk = load(path)
    _usable(disk)
    _check_nobodys(node, disk, disk.descriptor.shot(guid).guid)
    with leased(node, disk.directory, "snapshot-delete"):
        Driver().delete_snapshot(disk.directory.parent, guid, disk=disk.directory.name)


def _check_nobodys(node: Node, disk: Disk, guid: str) -> None:
    env = owner(node, disk.directory)
    if env is not None and savedstates.load(env.home).has(guid):
        raise InvalidState(
            f"{guid} is a snapshot of {env.name}, with all its disks",
            hint=f"Delete it: prlctl snapshot-delete {env.name} -i {guid}",
        )


def merge(node: Node, path: str, *, guid: str | None = None, every: bool = False) -> list[str]:
    """Take snapshots out of the line below the top: GUID, the one below the top, or every one.

    Nothing is copied: each image is complete.  Returns the GUIDs that are gone.
    """
    d = load(path).descriptor
    line = [image.guid for image in d.chain() if image.guid != d.top]
    if not line:
        raise NotFound(f"{path} has no snapshot to merge")
    below = line if every else line[-1:]
    wanted = below if guid is None else [d.shot(guid).guid]
    for each in wanted:
        delete(node, path, each)
    return wanted


# Replacing an image


def swap(node: Node, path: str, fresh: str, *, guid: str | None, keep_name: bool) -> None:
    """Let FRESH, an equal image in the disk's directory, take the place of a shot's image.

    keep_name: it gets the old one's name; else the old file stays beside.
    Raises UsageError, InvalidState (another size).
    """
    with held(node, path, "replace") as disk:
        file = Path(fresh)
        if file.parent.resolve() != disk.directory:
            raise UsageError(f"{fresh} is not in {disk.directory}")
        old = disk.image(guid)
        new = disk.directory / file.name
        imagedevice.check_free(new)
        if disk.descriptor.mode != RAW and identity.size(new) != identity.size(old):
            raise InvalidState(f"{fresh} is a disk of another size than {old.name}")
        if keep_name:
            new.replace(old)
        else:
            disk.save(disk.descriptor.with_file(guid or disk.descriptor.top, new.name))
