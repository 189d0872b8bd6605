"""Ploop disks as files of the node: made, described, converted, checked, resized.

A disk is named by its DiskDescriptor.xml, by the directory that holds it, or, where there is no
descriptor, by the image file.  Every function that changes something holds the disk's lock, and
the lease of the container that the disk belongs to.  Disks of containers that run are only
grown, trimmed and looked at here.  Sizes are in bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import (
    AlreadyExists,
    Busy,
    FileMissing,
    InvalidState,
    Unsupported,
    UsageError,
)
from pyvz.image import check as imagecheck
from pyvz.image import convert as conversion
from pyvz.image import descriptor, gpt, identity
from pyvz.image.delta import Stack, stack, stack_of
from pyvz.image.disk import EXPANDED, NAME, PREALLOCATED, RAW, TOP_GUID, Descriptor, Image
from pyvz.image.file import no_space, opened
from pyvz.image.header import CLUSTER
from pyvz.image.report import Report
from pyvz.linux import filesystem, loopdevice
from pyvz.linux.file import flock, fsync_directory
from pyvz.model.environment import Environment, Kind
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations import imagedevice, machinehdd
from pyvz.operations.imagedevice import Part
from pyvz.operations.node import Node
from pyvz.storage import qcow2adopt
from pyvz.storage.ploop import Driver

_LOCK_TIMEOUT = 30.0
FORMATS = {"raw": RAW, "ploop1": EXPANDED, "expanded": EXPANDED, "preallocated": PREALLOCATED}


class Disk(NamedTuple):
    """A described disk."""

    directory: Path
    descriptor: Descriptor

    def image(self, guid: str | None = None) -> Path:
        """Return the file of a shot; of the top when none is named."""
        return self.directory / self.descriptor.file_of(guid or self.descriptor.top)

    def save(self, new: Descriptor) -> None:
        """Write another description of the disk."""
        descriptor.save(self.directory / NAME, new)


def load(path: str) -> Disk:
    """Return the disk of a descriptor or directory; raises FileMissing, StorageError."""
    found = Path(path)
    if found.is_dir():
        found /= NAME
    return Disk(found.parent.resolve(), descriptor.load(found))


@contextlib.contextmanager
def held(node: Node, path: str, action: str, *, online: bool = False) -> Iterator[Disk]:
    """Hold the lock of a disk, and the lease of its container, and yield it.

    online: whether it may be attached.  Raises Locked, Busy, FileMissing, StorageError.
    """
    with lock(node, load(path).directory, action):
        disk = load(path)
        check = imagedevice.check_unlocked if online else imagedevice.check_free
        for image in disk.descriptor.images:
            check(disk.directory / image.file)
        yield disk


@contextlib.contextmanager
def lock(node: Node, directory: Path, action: str) -> Iterator[None]:
    """Hold the lock of whatever disk is in a directory; raises Locked, FileMissing."""
    if not directory.is_dir():
        raise FileMissing(f"there is no directory {directory}")
    with (
        leased(node, directory, action),
        flock(directory / f"{NAME}.lck", timeout=node.default_timeout),
    ):
        yield


@contextlib.contextmanager
def leased(node: Node, directory: Path, action: str, *, stopped: bool = False) -> Iterator[None]:
    """Hold the lease of the container or virtual machine that a disk belongs to, if there is one.

    stopped: the container must not run; a machine never may.  Raises Locked, InvalidState.
    """
    env = owner(node, directory)
    qcow2adopt.refuse_below(directory)
    if env is None:
        yield
        return
    with node.lease(env, action):
        stopped = stopped or env.kind == Kind.VM
        if stopped and node.status(env) not in {Status.STOPPED, Status.INVALID, Status.MOUNTED}:
            raise InvalidState(
                f"The disk belongs to {env.name}, which runs",
                hint=f"Stop it: prlctl stop {env.name}",
            )
        yield


def owner(node: Node, directory: Path) -> Environment | None:
    """Return the container in whose home a directory lies, or the machine whose disk it is."""
    real = directory.resolve()
    for env in node.registry.environments():
        if real.is_relative_to(env.home.resolve()):
            return env
    return machinehdd.owner(node, real)


# Making


class Wanted(NamedTuple):
    """A new disk.  fstype: "ext4", "xfs" or None.

    partition: in the one partition of a GPT, as OpenVZ does; the disks of our containers have none.
    form: of the file system.
    """

    size: int
    mode: str = PREALLOCATED
    fstype: str | None = "ext4"
    label: str = ""
    partition: bool = False
    form: filesystem.Form = filesystem.Form()


def create(node: Node, path: str, wanted: Wanted, progress: Progress) -> None:
    """Make the image PATH, a file system in it, and the descriptor beside it.

    Every format but raw is made in the identity form, which is thin by its holes.
    Raises AlreadyExists, NoSpace, StorageError, Unsupported; nothing is left then.
    """
    image = Path(path)
    image = image.parent.resolve() / image.name
    if wanted.fstype and wanted.size < filesystem.MINIMUM.get(wanted.fstype, 0):
        raise UsageError(f"{wanted.size} bytes are too few for a file system {wanted.fstype}")
    with lock(node, image.parent, "init"), contextlib.ExitStack() as undo:
        for taken in (image, image.parent / NAME):
            if os.path.lexists(taken):
                raise AlreadyExists(f"there is a file {taken} already")
        _make_image(image, wanted)
        undo.callback(image.unlink, missing_ok=True)
        size = image.stat().st_size if wanted.mode == RAW else identity.size(image)
        mode = RAW if wanted.mode == RAW else PREALLOCATED
        disk = Disk(
            image.parent,
            Descriptor(size, images=(Image(TOP_GUID, image.name),), mode=mode).checked(),
        )
        progress.stage("Making the file system")
        if wanted.fstype:
            _make_filesystem(disk, wanted)
        disk.save(disk.descriptor)
        undo.pop_all()


def _make_image(image: Path, wanted: Wanted) -> None:
    if wanted.mode != RAW:
        identity.create(image, wanted.size)
        return
    with no_space(image), image.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(-(-wanted.size // CLUSTER) * CLUSTER)
        os.fsync(file.fileno())
    fsync_directory(image.parent)


def _make_filesystem(disk: Disk, wanted: Wanted) -> None:
    image = disk.image()
    found = imagedevice.part(image, disk.descriptor)
    if wanted.partition:
        with opened(image, write=True) as fd:
            found = Part(found.start, found.size, gpt.write(fd, found.start, found.size))
            os.fsync(fd)
    with imagedevice.device(image, found) as loop:
        filesystem.make(loop.device, wanted.fstype or "", label=wanted.label, form=wanted.form)


def restore_descriptor(
    node: Node, directory: str, image: str, *, mode: str = EXPANDED, blocksize: int = 0
) -> None:
    """Write a new DiskDescriptor.xml into DIRECTORY for the one image in it.

    blocksize: bytes, for raw images; 0: the largest that fits.  An older descriptor is replaced.
    Raises UsageError (the image is elsewhere, or has no size of a disk), StorageError.
    """
    home, file = Path(directory).resolve(), Path(image)
    if file.parent.resolve() != home:
        raise UsageError(f"{image} is not in {directory}")
    with lock(node, home, "restore-descriptor"):
        imagedevice.check_free(home / file.name)
        if mode == RAW:
            with opened(home / file.name) as fd:
                size = os.fstat(fd).st_size
            block = blocksize or _best_block(size)
            if size == 0 or size % block:
                raise UsageError(f"{image} has {size} bytes, which is no multiple of {block}")
        else:
            with opened(home / file.name) as fd:
                header = identity.read_header(fd)
            block, size = header.cluster, header.clusters * header.cluster
            mode = PREALLOCATED if identity.is_identity(home / file.name) else EXPANDED
        images = (Image(TOP_GUID, file.name),)
        Disk(home, Descriptor(size)).save(
            Descriptor(size, blocksize=block, images=images, mode=mode).checked()
        )


def _best_block(size: int) -> int:
    # lib/ploop.c, select_best_blocksize(): the largest power of two from 32 KiB to 1 MiB.
    return next((1 << bits for bits in range(20, 14, -1) if size % (1 << bits) == 0), 1 << 15)


# Looking


class Facts(NamedTuple):
    """What is known of a disk.  version: of its top's header, 0 for a raw image."""

    size: int
    blocksize: int
    version: int
    mode: str
    device: str
    targets: tuple[str, ...]


def facts(node: Node, path: str) -> Facts:
    """Return what a disk is, and whether it is attached."""
    del node
    disk = load(path)
    d, image = disk.descriptor, disk.image()
    version = 0
    if d.mode != RAW:
        with opened(image) as fd:
            version = identity.read_header(fd).version
    found = imagedevice.places(image)
    device = os.fspath(found[0].loop.device) if found else ""
    targets = tuple(target for place in found for target in place.targets)
    return Facts(d.disk_size, d.blocksize, version, d.mode, device, targets)


def check(
    node: Node, path: str, *, repair: bool = False, raw: bool = False, guid: str | None = None
) -> list[tuple[str, Report]]:
    """Check one image, or all of a described disk up to GUID; return (file, report) of each.

    repair: put right what costs no data.  An image in use is not checked: Busy.
    """
    if not Path(path).is_dir() and not path.endswith(".xml"):
        file = Path(path)
        with lock(node, file.parent, "check"):
            imagedevice.check_free(file)
            return [(path, _check(file, raw=raw, repair=repair))]
    with held(node, path, "check") as disk:
        d = disk.descriptor
        return [
            (image.file, _check(disk.directory / image.file, raw=d.mode == RAW, repair=repair))
            for image in d.chain(guid)
        ]


def _check(file: Path, *, raw: bool, repair: bool) -> Report:
    return imagecheck.check_raw(file) if raw else imagecheck.check(file, repair=repair)


def fscheck(node: Node, path: str) -> bool:
    """Check and repair the file system of a disk that nobody has open; False: it stays damaged."""
    with held(node, path, "fscheck") as disk:
        image = disk.image()
        found = imagedevice.part(image, disk.descriptor)
        kind = imagedevice.kind(image, found)
        with imagedevice.device(image, found) as loop:
            return filesystem.check(loop.device, kind)


# Converting


def convert(
    node: Node,
    path: str,
    progress: Progress,
    *,
    mode: str | None = None,
    version: int | None = None,
) -> dict[str, str]:
    """Bring all images of a disk into another form; return the checksum of each by file name.

    mode: PREALLOCATED (the identity form), EXPANDED (thin, as OpenVZ reads it) or RAW, both for
    disks without snapshots only; version: 1 or 2 of thin images.  Every image becomes complete in
    itself.  Each is replaced in one step, and the disk is legal between the steps.
    """
    with held(node, path, "convert") as disk:
        return _convert(disk, progress, mode or EXPANDED, version)


def complete(directory: Path, progress: Progress) -> None:
    """Bring the images that are still thin into the form that runs; the caller holds the lease."""
    with flock(directory / f"{NAME}.lck", timeout=_LOCK_TIMEOUT):
        _convert(load(os.fspath(directory)), progress, PREALLOCATED)


def _convert(
    disk: Disk, progress: Progress, mode: str, version: int | None = None
) -> dict[str, str]:
    disk = _settled(disk)
    d = disk.descriptor
    if mode != PREALLOCATED and len(d.images) != 1:
        # A thin image tells zeros from nothing by clusters only: below a top without a cluster
        # the snapshot's data would show.
        raise Unsupported(
            f"A disk with snapshots cannot be converted to {mode}",
            hint="Delete the snapshots, or copy the disk: ploop copy -s DISK -d FILE -f expanded.",
        )
    if RAW in (mode, d.mode):
        return _convert_single(disk, progress, mode, version)
    checksums = {}
    # The top first: a complete image hides those below, so it does not matter what they are.
    for image in sorted(d.images, key=lambda each: -len(d.chain(each.guid))):
        file = disk.directory / image.file
        if mode == PREALLOCATED and identity.is_identity(file):
            continue
        fresh = file.with_name(f".{file.name}.converted")
        fresh.unlink(missing_ok=True)
        with stack_of(disk.directory, d, image.guid) as source:
            checksums[image.file] = _write(source, fresh, progress, mode, version)
        shutil.copymode(file, fresh)
        fresh.replace(file)
        fsync_directory(disk.directory)
    disk.save(replace(d, mode=mode))
    return checksums


def _write(source: Stack, target: Path, progress: Progress, mode: str, version: int | None) -> str:
    if mode == RAW:
        return conversion.to_raw(source, target, progress)
    if mode == PREALLOCATED:
        return conversion.to_identity(source, target, progress)
    return conversion.to_thin(source, target, progress, version=version or 2)


def _convert_single(
    disk: Disk, progress: Progress, mode: str, version: int | None
) -> dict[str, str]:
    """From or to raw, under the same name at last: the descriptor names the file that is meant in
    every step, for nothing in a raw file tells its form."""
    d = disk.descriptor
    if d.mode == mode:
        return {}
    old = disk.image()
    new = old.with_name(f"{old.name}.{mode}")
    with stack_of(disk.directory, d) as source:
        checksum = _write(source, new, progress, mode, version)
        size = -(-source.size // CLUSTER) * CLUSTER if mode != RAW else source.size
    shutil.copymode(old, new)
    changed = replace(d, mode=mode, blocksize=CLUSTER, disk_size=size)
    disk.save(changed.with_file(d.top, new.name))
    _settled(load(os.fspath(disk.directory)))
    return {old.name: checksum}


def _settled(disk: Disk) -> Disk:
    """Bring a conversion to its end, from wherever it was killed: the top has its own name again,
    and nothing else of it is left."""
    top = disk.image()
    for suffix in (RAW, EXPANDED, PREALLOCATED):
        if top.name.endswith(f".{suffix}"):
            name = top.name.removesuffix(f".{suffix}")
            wanted = disk.directory / name
            wanted.unlink(missing_ok=True)
            os.link(top, wanted)
            disk.save(disk.descriptor.with_file(disk.descriptor.top, name))
            disk = load(os.fspath(disk.directory))
    known = {image.file for image in disk.descriptor.images}
    for entry in disk.directory.iterdir():
        if entry.name not in known and any(_is_leftover(entry.name, image) for image in known):
            entry.unlink()
    fsync_directory(disk.directory)
    return disk


def _is_leftover(name: str, image: str) -> bool:
    hidden = name.startswith(".") and name.lstrip(".").startswith(f"{image}.")
    return hidden or name in {f"{image}.{suffix}" for suffix in (RAW, EXPANDED, PREALLOCATED)}


def copy(node: Node, source: str, target: str, progress: Progress, *, mode: str) -> str:
    """Copy the disk of a descriptor or image into the new file TARGET; return its checksum."""
    if Path(source).is_dir() or source.endswith(".xml"):
        with held(node, source, "copy") as disk, stack_of(disk.directory, disk.descriptor) as found:
            return _write(found, Path(target), progress, mode, None)
    file = Path(source)
    with lock(node, file.parent, "copy"), stack([file]) as found:
        imagedevice.check_free(file)
        return _write(found, Path(target), progress, mode, None)


# Changing the size


def resize(
    node: Node, path: str, size: int, progress: Progress, *, with_filesystem: bool = True
) -> int:
    """Make a disk SIZE bytes large (whole MiB) and return its size.

    Growing works while it is mounted.  A thin or raw disk is brought into the identity form first.
    with_filesystem: the partition and file system follow; without, a disk is only grown.
    Raises NoSpace, Unsupported, Busy, StorageError.
    """
    size = -(-size // CLUSTER) * CLUSTER
    if machine := machinehdd.bundle_at(node, path):
        machinehdd.resize(node, machine, size)
        return size
    with held(node, path, "resize", online=True) as disk:
        if disk.descriptor.mode == RAW or not identity.is_identity(disk.image()):
            imagedevice.check_free(disk.image())
            _convert(disk, progress, PREALLOCATED)
        now = load(path)
        found = imagedevice.part(now.image(), now.descriptor)
        progress.stage("Resizing")
        plain = filesystem.kind_at(now.image(), found.offset) is None
        if plain or not with_filesystem:
            return _grow_image(now, size)
        for place in imagedevice.places(now.image()):
            if not place.targets:
                raise Busy(f"{now.image()} is attached as {place.loop.device} but not mounted")
    with leased(node, now.directory, "resize"):
        Driver().resize(now.directory.parent, size, disk=now.directory.name)
    return load(path).descriptor.disk_size


def grow_file(node: Node, path: str, size: int, *, raw: bool = False) -> int:
    """Make an image that no descriptor names SIZE bytes large (whole MiB); returns its size.

    raw: it has no header.  Raises UsageError (smaller, or of a disk), Unsupported (thin), Busy.
    """
    file, size = Path(path), -(-size // CLUSTER) * CLUSTER
    with lock(node, file.parent, "grow"):
        imagedevice.check_free(file)
        if (file.parent / NAME).exists():
            disk = load(os.fspath(file.parent))
            if file.name in {image.file for image in disk.descriptor.images}:
                raise UsageError(
                    f"{file} is an image of a disk, whose description says how large it is",
                    hint=f"Name the disk: ploop grow -s SIZE {file.parent / NAME}",
                )
        if raw:
            return _grow_raw(file, size)
        if not identity.is_identity(file):
            raise Unsupported(
                f"{file} is a thin image, which cannot grow as it is",
                hint=f"Copy it into another form first: ploop copy -s {file} -d FILE",
            )
        return identity.grow(file, size)


def _grow_raw(file: Path, size: int) -> int:
    with no_space(file), opened(file, write=True) as fd:
        now = os.fstat(fd).st_size
        if size < now:
            raise UsageError(f"{file} has {now} bytes: {size} would be less")
        os.ftruncate(fd, size)
        os.fsync(fd)
    return size


def _grow_image(disk: Disk, size: int) -> int:
    if size < disk.descriptor.disk_size:
        raise UsageError("a disk can only be made smaller together with its file system")
    size = identity.grow(disk.image(), size)
    for loop, _ in imagedevice.places(disk.image()):
        part = imagedevice.part(disk.image(), disk.descriptor)
        loopdevice.resize(loop.device, part.length)
    disk.save(replace(disk.descriptor, disk_size=size))
    return size
