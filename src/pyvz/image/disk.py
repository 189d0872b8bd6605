"""A ploop disk as values: its size, its images, and its tree of snapshots.

Every image belongs to one shot of the same GUID; the shots form a tree below NO_PARENT.  The top,
always TOP_GUID in what we write, is the shot that takes the writes.  Source: ploop lib/di.c.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pyvz.errors import AlreadyExists, InvalidState, NotFound, StorageError, UsageError
from pyvz.image.header import CLUSTER, SECTOR, check_cluster

NAME = "DiskDescriptor.xml"
TOP_GUID = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
NO_PARENT = "{00000000-0000-0000-0000-000000000000}"
BASE_FILE = "root.hds"  # the first image of a new disk

EXPANDED = "expanded"  # thin: the original's default
PREALLOCATED = "preallocated"  # every cluster allocated: our identity form
RAW = "raw"  # no header at all

TEMPORARY = ("Temporary", "TemporaryZero", "TemporaryZeroSwap")

_MAX_SHOTS = 4096  # ploop documents 126 deltas in a stack; a bound of our own for the tree
_MAX_SECTORS = 1 << 43  # 4 EiB: 2^32 clusters of 1 MiB
_GUID = re.compile(r"\{?([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\}?")


@dataclass(frozen=True, slots=True)
class Image:
    """The file that belongs to the shot `guid`."""

    guid: str
    file: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A node of the tree: a snapshot, or the top.  temporary: one of TEMPORARY, or empty."""

    guid: str
    parent: str = NO_PARENT
    temporary: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """How a disk is based on another one (ploop-volume)."""

    parent: str = ""
    snapshot: str = ""
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A disk: sizes in bytes, images and shots in the order of the file.

    mode: EXPANDED, PREALLOCATED or RAW.  All changes give a new descriptor and touch no file.
    """

    disk_size: int
    blocksize: int = CLUSTER
    images: tuple[Image, ...] = (Image(TOP_GUID, BASE_FILE),)
    snapshots: tuple[Shot, ...] = (Shot(TOP_GUID),)
    top: str = TOP_GUID
    mode: str = PREALLOCATED
    max_delta_size: int = 0
    key: str = ""
    volume: Volume | None = field(default=None)

    def file_of(self, guid: str) -> str:
        """Return the file name of a shot's image; raises NotFound."""
        guid = normal_guid(guid)
        for image in self.images:
            if image.guid == guid:
                return image.file
        raise NotFound(f"there is no snapshot {guid}")

    def shot(self, guid: str) -> Shot:
        """Return a shot; raises NotFound."""
        guid = normal_guid(guid)
        for each in self.snapshots:
            if each.guid == guid:
                return each
        raise NotFound(f"there is no snapshot {guid}")

    def children(self, guid: str) -> tuple[str, ...]:
        """Return the GUIDs of the shots directly below one."""
        guid = normal_guid(guid)
        return tuple(each.guid for each in self.snapshots if each.parent == guid)

    def chain(self, guid: str | None = None) -> tuple[Image, ...]:
        """Return the images from the base up to a shot (the top when none is named)."""
        parents = {each.guid: each.parent for each in self.snapshots}
        at = self.shot(guid or self.top).guid
        found = []
        while at != NO_PARENT:
            found.append(Image(at, self.file_of(at)))
            at = parents[at]
        return tuple(reversed(found))

    def with_snapshot(self, guid: str, file: str) -> Descriptor:
        """Add the snapshot GUID, whose image is FILE: a whole copy of the top made before.

        The top keeps its own file and becomes the snapshot's child.
        Raises AlreadyExists, BadValue.
        """
        return self._inserted(guid, Image(normal_guid(guid), file), self.file_of(self.top))

    def with_delta(self, guid: str, file: str) -> Descriptor:
        """Add the snapshot GUID as the original does: the top's file becomes the snapshot, and
        the empty delta FILE the new top."""
        return self._inserted(guid, Image(normal_guid(guid), self.file_of(self.top)), file)

    def _inserted(self, guid: str, snapshot: Image, top_file: str) -> Descriptor:
        guid = normal_guid(guid)
        if guid in (NO_PARENT, TOP_GUID) or any(each.guid == guid for each in self.snapshots):
            raise AlreadyExists(f"there is a snapshot {guid} already")
        top = self.shot(self.top)
        images = [each for each in self.images if each.guid != self.top]
        shots = [each for each in self.snapshots if each.guid != self.top]
        return replace(
            self,
            images=(*images, snapshot, Image(self.top, top_file)),
            snapshots=(*shots, Shot(guid, top.parent), Shot(self.top, guid)),
        ).checked()

    def with_mark(self, guid: str, temporary: str) -> Descriptor:
        """Mark a shot as one of TEMPORARY; raises NotFound."""
        marked = replace(self.shot(guid), temporary=temporary)
        shots = tuple(marked if each.guid == marked.guid else each for each in self.snapshots)
        return replace(self, snapshots=shots).checked()

    def without_snapshot(self, guid: str) -> Descriptor:
        """Take a snapshot out of the tree; what was below it moves up to its parent.

        Only for images that need no other (identity form); the caller removes its file.
        Raises NotFound, InvalidState for the top.
        """
        gone = self.shot(guid)
        if gone.guid == self.top:
            raise InvalidState("the top of a disk is no snapshot and cannot be deleted")
        return replace(
            self,
            images=tuple(each for each in self.images if each.guid != gone.guid),
            snapshots=tuple(
                replace(each, parent=gone.parent) if each.parent == gone.guid else each
                for each in self.snapshots
                if each.guid != gone.guid
            ),
        )

    def switched(self, guid: str, file: str) -> Descriptor:
        """Make FILE, which begins as a copy of the snapshot GUID, the top; the old top is gone."""
        parent = self.shot(guid).guid
        if parent == self.top:
            raise InvalidState("the top of a disk is no snapshot to switch to")
        return replace(
            self,
            images=(
                *(each for each in self.images if each.guid != self.top),
                Image(self.top, file),
            ),
            snapshots=(
                *(each for each in self.snapshots if each.guid != self.top),
                Shot(self.top, parent),
            ),
        ).checked()

    def with_parents(self, parents: Mapping[str, str]) -> Descriptor:
        """Let the shots named be above others; raises StorageError when that is no tree."""
        shots = (replace(x, parent=parents.get(x.guid, x.parent)) for x in self.snapshots)
        return replace(self, snapshots=tuple(shots)).checked()

    def with_file(self, guid: str, file: str) -> Descriptor:
        """Let the image of a shot be in FILE."""
        old = self.shot(guid).guid
        images = (Image(old, file) if each.guid == old else each for each in self.images)
        return replace(self, images=tuple(images)).checked()

    def with_constant_top(self) -> Descriptor:
        """Return the same disk with TOP_GUID as its top, as every version since OpenVZ 6 wants."""
        if self.top == TOP_GUID or self.volume is not None:
            return self
        if any(each.guid == TOP_GUID for each in self.snapshots):
            raise StorageError(f"{TOP_GUID} is in use for something else than the top")
        new = {self.top: TOP_GUID}
        return replace(
            self,
            top=TOP_GUID,
            images=tuple(Image(new.get(each.guid, each.guid), each.file) for each in self.images),
            snapshots=tuple(
                Shot(new.get(each.guid, each.guid), each.parent, each.temporary)
                for each in self.snapshots
            ),
        )

    def checked(self) -> Descriptor:
        """Return the descriptor when everything in it fits together; raises StorageError."""
        _check_sizes(self)
        _check_images(self)
        _check_tree(self)
        return self


def _check_sizes(d: Descriptor) -> None:
    if not 0 < d.disk_size <= _MAX_SECTORS * SECTOR or d.disk_size % SECTOR:
        raise StorageError(f"a disk cannot have {d.disk_size} bytes")
    check_cluster(d.blocksize)
    if d.mode not in (EXPANDED, PREALLOCATED, RAW):
        raise StorageError(f"there is no image format '{d.mode}'")


def _check_images(d: Descriptor) -> None:
    if not d.images or len(d.images) > _MAX_SHOTS:
        raise StorageError(f"a disk cannot have {len(d.images)} images")
    for image in d.images:
        check_name(image.file)
    for what in ("guid", "file"):
        values = [getattr(each, what) for each in d.images]
        if len(set(values)) != len(values):
            raise StorageError(f"two images have the same {what.upper()}")


def _check_tree(d: Descriptor) -> None:
    parents = {each.guid: each.parent for each in d.snapshots}
    if len(parents) != len(d.snapshots):
        raise StorageError("two snapshots have the same GUID")
    if set(parents) != {each.guid for each in d.images}:
        raise StorageError("images and snapshots do not belong together")
    if NO_PARENT in parents:
        raise StorageError("a snapshot has the GUID of none")
    if d.top not in parents:
        raise StorageError(f"the top {d.top} is not among the snapshots")
    if d.shot(d.top).temporary:
        raise StorageError(f"the top {d.top} is temporary")
    if d.top in parents.values():
        raise StorageError(f"a snapshot lies above the top {d.top}")
    _check_roots(d, parents)


def _check_roots(d: Descriptor, parents: dict[str, str]) -> None:
    """Raise StorageError unless every shot leads down to the base."""
    rooted = {NO_PARENT}
    for shot in d.snapshots:
        at, path = shot.guid, set[str]()
        while at not in rooted:
            if at in path:
                raise StorageError("the tree of snapshots goes in a circle")
            if at not in parents:
                if d.volume is not None:  # it is a shot of the volume below
                    break
                raise StorageError(f"a snapshot has the unknown parent {at}")
            path.add(at)
            at = parents[at]
        rooted |= path


def check_name(name: str) -> None:
    """Raise StorageError unless NAME is a plain file name: no directory, no control characters."""
    if (
        not name
        or "/" in name
        or name in (".", "..", NAME)
        or len(os.fsencode(name)) > 255
        or not name.isprintable()
    ):
        raise StorageError(
            f"{name[:80]!r} is no name of an image",
            details=f"The images of a disk lie beside its {NAME}.",
        )


def normal_guid(text: str) -> str:
    """Return a GUID with braces and small letters; raises UsageError."""
    match = _GUID.fullmatch(text)
    if match is None:
        raise UsageError(
            f"'{text[:80]}' is not a snapshot id: {{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}}"
        )
    return "{" + match.group(1).lower() + "}"
