"""A thin ploop disk of OpenVZ run where it lies: read-only, below a qcow2 image for the writes.

    <home>/root.hdd/             the ploop disk with its snapshots; nothing in it is written
    <home>/qcow2/disk.qcow2      what has been written since
    <home>/qcow2/stack           which shot of which disk is below: {"disk": ..., "guid": ...}
    <home>/qcow2/layers/N.qcow2  while it is shown: how QEMU is told about the stack

QEMU reads the thin form, but lets no thin image lie on another one where nodes are described, only
where a qcow2 image names what is below it.  So there is an empty one for each layer, which names
that layer over the one before; they are made anew each time, and nobody else's is ever opened.

Writing to thin images through QEMU is not done: some versions overwrite data after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import FileMissing, NotFound, StorageError, Unsupported
from pyvz.image import check as imagecheck
from pyvz.image import delta, descriptor, identity
from pyvz.image.disk import NAME, RAW, Descriptor
from pyvz.linux import file
from pyvz.storage.daemon import Node

FILE: Final = "stack"
LAYERS: Final = "layers"
_MAX_NAME: Final = 1000  # of what is below, in the header of a qcow2 image: 1023
Tool = Callable[..., str]  # qemu-img


class Stack(NamedTuple):
    """A shot of a ploop disk in a directory."""

    directory: Path
    guid: str

    @property
    def exists(self) -> bool:
        """Whether the disk is there."""
        return (self.directory / NAME).is_file() and not self.directory.is_symlink()

    def descriptor(self) -> Descriptor:
        """Return what the disk consists of."""
        return descriptor.load(self.directory / NAME)

    @contextlib.contextmanager
    def opened(self) -> Iterator[delta.Stack]:
        """Open the disk for reading; every table is checked.  Raises StorageError."""
        with delta.stack_of(self.directory, self.descriptor(), self.guid) as found:
            yield found

    def at(self, guid: str) -> Stack:
        """Return another shot of the disk; raises NotFound."""
        d = self.descriptor()
        shot = d.shot(guid)
        if shot.guid == d.top:
            raise NotFound(f"there is no snapshot {guid}")
        return Stack(self.directory, shot.guid)

    def write(self, directory: Path) -> None:
        """Note in the new directory of a qcow2 disk that this lies below it."""
        text = json.dumps({"disk": self.directory.name, "guid": self.guid})
        file.write_atomic(directory / FILE, text, 0o600)

    def nodes(self, directory: Path, tool: Tool) -> list[Node]:
        """Make the images of `layers/` anew; return the block nodes that show it as `stack`."""
        made = directory / LAYERS
        file.remove_tree(made)
        made.mkdir(mode=0o700)
        with self.opened() as found:
            size = str(found.size)
            layers = [(each.path, each.table is None) for each in found.layers]
        below = Path()
        for number, (image, raw) in enumerate(layers):
            name = _name(image, below if number else None, raw=raw)
            below = made / f"{number}.qcow2"
            words = ["create", "-q", "-u", "-f", "qcow2", "-b", name]
            tool(*words, "-F", "raw" if raw else "parallels", below, size)
        node = {"driver": "file", "node-name": "stack-file", "filename": os.fspath(below)}
        return [
            {**node, "read-only": True},
            {"driver": "qcow2", "node-name": "stack", "file": "stack-file", "read-only": True},
        ]


def read(directory: Path) -> Stack | None:
    """Return what lies below the qcow2 disk in `directory`; None for one that is whole itself."""
    try:
        found = json.loads(file.read_text_limited(directory / FILE, 4096))
        name, guid = str(found["disk"]), str(found["guid"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{directory / FILE} cannot be understood") from error
    if "/" in name or name.startswith("."):
        raise StorageError(f"{directory / FILE} names a disk elsewhere")
    return Stack(directory.parent / name, guid)


def thin(directory: Path) -> Stack | None:
    """Return a ploop disk as a stack, unless its top is in the form that runs by itself."""
    try:
        d = descriptor.load(directory / NAME)
        if d.mode != RAW and identity.is_identity(directory / d.file_of(d.top)):
            return None
    except FileMissing:
        return None
    return Stack(directory, d.top)


def make_whole(stack: Stack) -> None:
    """Check every image of a stack, and finish what its last user left: ends, marks.

    Raises StorageError for a damaged one; nothing is changed then.
    """
    d = stack.descriptor()
    if d.mode != RAW:
        files = [stack.directory / image.file for image in d.images]
        for path in files:
            if errors := imagecheck.check(path).errors:
                raise StorageError(f"{path} is damaged", details="\n".join(errors))
        for path in files:
            imagecheck.check(path, repair=True)
    with stack.opened():
        pass


def _name(image: Path, below: Path | None, *, raw: bool) -> str:
    """Return how QEMU is told to open a layer over the one before."""
    values = {
        "driver": "raw" if raw else "parallels",
        "file.driver": "file",
        "file.filename": os.fspath(image.resolve()),
    }
    if below is not None:
        values["backing.driver"] = "qcow2"
        values["backing.file.driver"] = "file"
        values["backing.file.filename"] = os.fspath(below.resolve())
    name = "json:" + json.dumps(values)
    if len(os.fsencode(name)) > _MAX_NAME:
        raise Unsupported(f"The path of {image} is too long for a disk that is run where it lies")
    return name
