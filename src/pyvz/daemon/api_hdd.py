"""The interface io.pyvz.Hdd: images of virtual machines by their path.

No `from __future__ import annotations` here: see replies.py.
"""

from typing import TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import machinehdd
from pyvz.operations.node import Node


class HddValue(TypedDict):
    """An image; sizes in bytes.  allocated: what it takes; snapshots: their names, inside it."""

    size: int
    allocated: int
    blocksize: int
    snapshots: list[str]


class Freed(TypedDict):
    """freed: bytes that the node got back; less than 0: that it gave."""

    freed: int


class Merged(TypedDict):
    """The names of the snapshots that are gone."""

    snapshots: list[str]


class Hdd(Api, VarlinkInterface, name="io.pyvz.Hdd"):
    """Images of disks of virtual machines, in whose homes or elsewhere.  `path` is absolute."""

    @varlinkmethod(return_parameter="facts", allow_foreign=True)
    async def Info(self, *, path: str) -> HddValue:
        """Return what an image is."""
        found: machinehdd.Facts = await self.query(machinehdd.facts, path)
        return {
            "size": found.size,
            "allocated": found.allocated,
            "blocksize": found.blocksize,
            "snapshots": list(found.snapshots),
        }

    @acting(Empty)
    def Resize(self, node: Node, *, path: str, size: int) -> Work:
        """Make a disk larger, also of a machine that runs."""
        return Work("resize", path, lambda _: machinehdd.resize(node, path, size))

    @streaming(Freed)
    def Convert(self, node: Node, *, path: str, plain: bool = False) -> Work:
        """Have a disk take space as it is needed, or (plain) the space of all of it."""
        return Work(
            "convert",
            path,
            lambda task: machinehdd.convert(node, path, task, plain=plain),
            lambda freed: {"freed": freed},
            cancellable=True,
        )

    @acting(Merged)
    def Merge(self, node: Node, *, path: str) -> Work:
        """Delete the snapshots inside an image; what it holds now stays."""
        return Work(
            "merge",
            path,
            lambda _: machinehdd.merge(node, path),
            lambda gone: {"snapshots": list(gone)},
        )
