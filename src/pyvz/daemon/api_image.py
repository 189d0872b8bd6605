"""The interface io.pyvz.Image: ploop disks as files of the node.

No `from __future__ import annotations` here: see replies.py.
"""

from typing import TypedDict

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.errors import UsageError
from pyvz.image.disk import EXPANDED, PREALLOCATED
from pyvz.image.report import Report
from pyvz.linux.filesystem import Form
from pyvz.operations import image, imagecopy, imageestimate, imagemount
from pyvz.operations.image import FORMATS, Wanted
from pyvz.operations.imagemount import Way
from pyvz.operations.node import Node


class AttachedValue(TypedDict):
    """A loop device above an image; target: where it is mounted, empty: nowhere."""

    device: str
    image: str
    target: str


class ShotValue(TypedDict):
    """A snapshot, or the top."""

    uuid: str
    parent_uuid: str
    current: bool
    fname: str


class FactsValue(TypedDict):
    """A disk: sizes in bytes; version of the format, 0: raw; device: empty: not attached."""

    size: int
    blocksize: int
    version: int
    mode: str
    device: str
    targets: list[str]


class SpaceValue(TypedDict):
    """Bytes and inodes of a file system."""

    size: int
    used: int
    inodes: int
    inodes_used: int


class EstimateValue(TypedDict):
    """A disk in bytes.  minimum: what Resize could make of it; resizable: its file system can
    shrink; allocated: what its image takes, used: what its file system has in use.
    """

    size: int
    minimum: int
    resizable: bool
    blocksize: int
    allocated: int
    used: int


class CheckValue(TypedDict):
    """What a check of one image file found."""

    file: str
    errors: list[str]
    leaks: list[str]
    repaired: list[str]
    in_use: bool


class Reports(TypedDict):
    """What a check found, by image."""

    reports: list[CheckValue]


class Checksum(TypedDict):
    """The checksum of the content of an image file (docs/design/images.md)."""

    file: str
    sha256: str


class Checksums(TypedDict):
    """The images that were written."""

    images: list[Checksum]


class Size(TypedDict):
    """A size in bytes."""

    size: int


class Whole(TypedDict):
    """Whether the file system is whole (now)."""

    whole: bool


class Guid(TypedDict):
    """The id of a snapshot."""

    uuid: str


class Guids(TypedDict):
    """The ids of snapshots."""

    uuids: list[str]


class Device(TypedDict):
    """A device of the node."""

    device: str


def _mode(name: str) -> str:
    if name not in FORMATS:
        raise UsageError(f"There is no image format '{name}'", hint=f"Known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def _report(file: str, report: Report) -> CheckValue:
    return {
        "file": file,
        "errors": list(report.errors),
        "leaks": list(report.leaks),
        "repaired": list(report.repaired),
        "in_use": report.in_use,
    }


def _checksums(found: dict[str, str]) -> Checksums:
    return {"images": [{"file": name, "sha256": value} for name, value in found.items()]}


class Image(Api, VarlinkInterface, name="io.pyvz.Image"):
    """Ploop disks as files of the node.  `path` is the absolute path of a DiskDescriptor.xml, of
    its directory, or where it is said of an image file.  Sizes are in bytes.
    """

    @streaming(Empty)
    def Init(  # noqa: PLR0913  one call, as `ploop init` has it
        self,
        node: Node,
        *,
        path: str,
        size: int,
        format: str = "preallocated",
        fstype: str | None = None,
        label: str = "",
        partition: bool = False,
        block: int = 4096,
        lazy: bool = True,
    ) -> Work:
        """Make an image, a file system in it (fstype), and a descriptor beside it.
        block: bytes of the file system's blocks; lazy: an ext4 writes its tables when mounted.
        """
        form = Form(block, lazy)
        wanted = Wanted(size, _mode(format), fstype, label, partition, form)
        return Work(
            "init", path, lambda task: image.create(node, path, wanted, task), cancellable=True
        )

    @acting(AttachedValue)
    def Mount(  # noqa: PLR0913  one call, as `ploop mount` has it
        self,
        node: Node,
        *,
        path: str,
        target: str | None = None,
        readonly: bool = False,
        uuid: str | None = None,
        fsck: bool = False,
        options: list[str] | None = None,
        fstype: str = "",
        below: list[str] | None = None,
        raw: bool = False,
    ) -> Work:
        """Attach a disk, a snapshot of it (uuid; read-only) or an image, and mount it on target.
        options: of mount; fstype: what must be in it; below: the images of a stack whose top
        `path` is, the base first; raw: `path` is an image without a header.
        """
        words, images = tuple(options or ()), tuple(below or ())
        way = Way(target, readonly, uuid, fsck, words, fstype, images, raw)
        return Work(
            "mount",
            path,
            lambda _: imagemount.attach(node, path, way),
            lambda found: found._asdict(),
        )

    @acting(Device)
    def Umount(self, node: Node, *, path: str = "", device: str = "", target: str = "") -> Work:
        """Unmount and detach a disk or image, named in one of three ways."""
        return Work(
            "umount",
            path or device or target,
            lambda _: imagemount.detach(node, path=path, device=device, target=target),
            lambda found: {"device": found},
        )

    @streaming(Size)
    def Resize(self, node: Node, *, path: str, size: int, filesystem: bool = True) -> Work:
        """Resize a disk (growing also while mounted), and with `filesystem` what is in it."""
        return Work(
            "resize",
            path,
            lambda task: image.resize(node, path, size, task, with_filesystem=filesystem),
            lambda found: {"size": found},
        )

    @acting(Size)
    def Grow(self, node: Node, *, path: str, size: int, raw: bool = False) -> Work:
        """Make an image that no descriptor names larger; raw: it has no header."""
        return Work(
            "grow",
            path,
            lambda _: image.grow_file(node, path, size, raw=raw),
            lambda found: {"size": found},
        )

    @varlinkmethod(return_parameter="snapshots", allow_foreign=True)
    async def Snapshots(
        self, *, path: str, uuid: str | None = None, below_top: bool = False
    ) -> list[ShotValue]:
        """Return the snapshots and the top; with uuid the line from there down to the base.
        below_top: the snapshot below the top counts as current.
        """
        rows = await self.query(imagemount.snapshots, path, guid=uuid, below_top=below_top)
        return [
            {
                "uuid": row.uuid,
                "parent_uuid": row.parent_uuid,
                "current": row.current,
                "fname": row.fname,
            }
            for row in rows
        ]

    @acting(Guid)
    def Snapshot(self, node: Node, *, path: str, uuid: str | None = None) -> Work:
        """Take a snapshot, also of a mounted disk."""
        return Work(
            "snapshot",
            path,
            lambda _: imagemount.snapshot(node, path, uuid),
            lambda found: {"uuid": found},
        )

    @acting(AttachedValue)
    def TemporarySnapshot(self, node: Node, *, path: str, uuid: str) -> Work:
        """Take a snapshot for a while and attach it read-only; EndTemporary takes it away."""
        return Work(
            "tsnapshot",
            path,
            lambda _: imagemount.temporary(node, path, uuid),
            lambda found: found._asdict(),
        )

    @acting(Device)
    def EndTemporary(self, node: Node, *, path: str) -> Work:
        """Detach and delete the temporary snapshots of a disk."""
        return Work(
            "umount",
            path,
            lambda _: imagemount.end_temporary(node, path),
            lambda found: {"device": found},
        )

    @acting(Empty)
    def SnapshotSwitch(self, node: Node, *, path: str, uuid: str) -> Work:
        """Make a disk what it was at a snapshot."""
        return Work("snapshot-switch", path, lambda _: imagemount.switch(node, path, uuid))

    @acting(Empty)
    def SnapshotDelete(self, node: Node, *, path: str, uuid: str) -> Work:
        """Delete a snapshot; those above it stay."""
        return Work("snapshot-delete", path, lambda _: imagemount.delete(node, path, uuid))

    @acting(Guids)
    def SnapshotMerge(
        self, node: Node, *, path: str, uuid: str | None = None, all: bool = False
    ) -> Work:
        """Take a snapshot, the one below the top, or all below the top out of the line."""
        return Work(
            "snapshot-merge",
            path,
            lambda _: imagemount.merge(node, path, guid=uuid, every=all),
            lambda gone: {"uuids": gone},
        )

    @varlinkmethod(return_parameter="facts", allow_foreign=True)
    async def Info(self, *, path: str) -> FactsValue:
        """Return what a disk is."""
        facts: image.Facts = await self.query(image.facts, path)
        return {
            "size": facts.size,
            "blocksize": facts.blocksize,
            "version": facts.version,
            "mode": facts.mode,
            "device": facts.device,
            "targets": list(facts.targets),
        }

    @varlinkmethod(return_parameter="space", allow_foreign=True)
    async def Usage(self, *, path: str) -> SpaceValue:
        """Return how full the file system of a disk is."""
        found = await self.query(imagemount.usage, path)
        return {
            "size": found.total,
            "used": found.used,
            "inodes": found.inodes,
            "inodes_used": found.inodes_used,
        }

    @varlinkmethod(return_parameter="estimate", allow_foreign=True)
    async def Estimate(self, *, path: str) -> EstimateValue:
        """Return how small a disk could become, and what it takes."""
        found: imageestimate.Estimate = await self.query(imageestimate.estimate, path)
        return {
            "size": found.size,
            "minimum": found.minimum,
            "resizable": found.resizable,
            "blocksize": found.blocksize,
            "allocated": found.allocated,
            "used": found.used,
        }

    @streaming(Size)
    def Reserve(self, node: Node, *, path: str) -> Work:
        """Keep space in the pool for the whole disk; return its size.  Can be called off."""
        return Work(
            "reserve",
            path,
            lambda task: imageestimate.reserve(node, path, task),
            lambda size: {"size": size},
            cancellable=True,
        )

    @varlinkmethod(return_parameter="image", allow_foreign=True)
    async def Open(self, *, path: str) -> FileDescriptor:
        """Return a copy of a disk's image as it is at this moment, open for reading."""
        fd: int = await self.query(imagecopy.opened, path)
        return FileDescriptor(fd, should_close=True)

    @varlinkmethod(return_parameter="attached", allow_foreign=True)
    async def List(self) -> list[AttachedValue]:
        """Return every loop device of the machine that is above a ploop image."""
        rows = await self.services.tasks.query(imagemount.attached)
        return [{"device": row.device, "image": row.image, "target": row.target} for row in rows]

    @streaming(Reports)
    def Check(
        self,
        node: Node,
        *,
        path: str,
        repair: bool = False,
        raw: bool = False,
        uuid: str | None = None,
    ) -> Work:
        """Check a disk (up to the snapshot uuid) or an image file; repair what costs no data."""
        return Work(
            "check",
            path,
            lambda _: image.check(node, path, repair=repair, raw=raw, guid=uuid),
            lambda found: {"reports": [_report(*each) for each in found]},
        )

    @streaming(Whole)
    def FsCheck(self, node: Node, *, path: str) -> Work:
        """Check and repair the file system of a disk that is not attached."""
        return Work(
            "fscheck",
            path,
            lambda _: image.fscheck(node, path),
            lambda whole: {"whole": whole},
        )

    @streaming(Checksums)
    def Convert(
        self, node: Node, *, path: str, format: str | None = None, version: int | None = None
    ) -> Work:
        """Bring all images of a disk into another form.  Can be called off."""
        mode = _mode(format) if format is not None else EXPANDED
        return Work(
            "convert",
            path,
            lambda task: image.convert(node, path, task, mode=mode, version=version),
            _checksums,
            cancellable=True,
        )

    @streaming(Checksums)
    def Copy(self, node: Node, *, path: str, target: str, format: str = PREALLOCATED) -> Work:
        """Copy the disk of a descriptor or image file to a new file.  Can be called off."""
        mode = _mode(format)
        return Work(
            "copy",
            path,
            lambda task: {target: image.copy(node, path, target, task, mode=mode)},
            _checksums,
            cancellable=True,
        )

    @streaming(Size)
    def Discard(self, node: Node, *, path: str) -> Work:
        """Give free space of a disk's file system back to the node; return how much."""
        return Work(
            "discard",
            path,
            lambda _: imagemount.discard(node, path),
            lambda freed: {"size": freed},
        )

    @acting(Empty)
    def RestoreDescriptor(
        self,
        node: Node,
        *,
        directory: str,
        image_file: str,
        format: str = "expanded",
        blocksize: int = 0,
    ) -> Work:
        """Write a new DiskDescriptor.xml for the one image in a directory."""
        mode = _mode(format)
        return Work(
            "restore-descriptor",
            directory,
            lambda _: image.restore_descriptor(
                node, directory, image_file, mode=mode, blocksize=blocksize
            ),
        )

    @acting(Empty)
    def Replace(
        self,
        node: Node,
        *,
        path: str,
        image_file: str,
        uuid: str | None = None,
        keep_name: bool = False,
    ) -> Work:
        """Let an equal image in the directory take the place of a snapshot's or the top's."""
        return Work(
            "replace",
            path,
            lambda _: imagemount.swap(node, path, image_file, guid=uuid, keep_name=keep_name),
        )
