"""The interface io.pyvz.Storage: snapshots of an environment, and what is done to its disks.

No `from __future__ import annotations` here: see replies.py.  Disks are added, changed and removed
by the options of Environment.Set.
"""

from typing import TypedDict

from asyncvarlink import VarlinkInterface, varlinkmethod

from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty
from pyvz.daemon.tasks import Work
from pyvz.operations import compact, convert, snapshot
from pyvz.operations.node import Node


class SnapshotTaken(TypedDict):
    """The new snapshot.  memory: whether it has the memory of a running environment, too."""

    id: str
    running: bool
    memory: bool


class SnapshotRow(TypedDict):
    """One snapshot.  parent: "" for one without.  device, target: where it is mounted, or ""."""

    id: str
    parent: str
    current: bool
    name: str
    date: str
    description: str
    state: str
    device: str
    target: str


class SnapshotRows(TypedDict):
    """The tree of snapshots, parents before children."""

    snapshots: list[SnapshotRow]


class SnapshotId(TypedDict):
    """A snapshot."""

    id: str


class Target(TypedDict):
    """Where it is mounted on the node."""

    target: str


class Freed(TypedDict):
    """By how many bytes the images became smaller."""

    freed: int


class UnusedSpace(TypedDict):
    """A disk that can be compacted, in bytes.  allocated: of the node's; used: by what is in it."""

    name: str
    size: int
    allocated: int
    used: int
    autocompact: bool


class UnusedRows(TypedDict):
    """Disks."""

    disks: list[UnusedSpace]


class Layout(TypedDict):
    """The layout before, and how many files were copied and compared."""

    before: str
    files: int


def _row(row: snapshot.Row) -> SnapshotRow:
    return {
        "id": row.state.guid,
        "parent": row.state.parent,
        "current": row.current,
        "name": row.state.name,
        "date": row.state.date,
        "description": row.state.description,
        "state": row.state.state,
        "device": row.device,
        "target": row.target,
    }


class Storage(Api, VarlinkInterface, name="io.pyvz.Storage"):
    """Snapshots and disks.  `ref` is a UUID, a legacy numeric CTID, or a name; ids of snapshots
    may be given with or without braces.
    """

    @varlinkmethod
    async def SnapshotList(self, *, ref: str) -> SnapshotRows:
        """Return the snapshots of an environment."""
        return {"snapshots": [_row(row) for row in await self.query(snapshot.rows, ref)]}

    @streaming(SnapshotTaken)
    def Snapshot(
        self,
        node: Node,
        *,
        ref: str,
        id: str | None = None,
        name: str = "",
        description: str = "",
        memory: bool = True,
    ) -> Work:
        """Keep disks and configuration as they are now, and (memory) the memory of what runs."""
        wanted = snapshot.Wanted(id, name, description, memory)
        return Work(
            "snapshot",
            ref,
            lambda task: snapshot.create(node, ref, wanted, progress=task),
            lambda made: {"id": made.guid, "running": made.running, "memory": made.memory},
            cancellable=True,
        )

    @streaming(SnapshotId)
    def SnapshotSwitch(
        self, node: Node, *, ref: str, id: str | None = None, resume: bool = True
    ) -> Work:
        """Make a stopped environment what it was at a snapshot (without id: at the current one).

        One with memory goes on from there, or (not resume) is suspended.
        """
        return Work(
            "snapshot-switch",
            ref,
            lambda task: snapshot.switch(node, ref, id, resume=resume, progress=task),
            lambda guid: {"id": guid},
        )

    @streaming(Empty)
    def SnapshotDelete(self, node: Node, *, ref: str, id: str, children: bool = False) -> Work:
        """Forget a snapshot; children: with all below it, which else move up to its parent."""
        return Work(
            "snapshot-delete",
            ref,
            lambda task: snapshot.delete(node, ref, id, children=children, progress=task),
        )

    @acting(Target)
    def SnapshotMount(self, node: Node, *, ref: str, id: str, target: str) -> Work:
        """Show the root disk of a snapshot read-only at the directory TARGET of the node."""
        return Work(
            "snapshot-mount",
            ref,
            lambda _: snapshot.mount_snapshot(node, ref, id, target),
            lambda place: {"target": place},
        )

    @acting(Empty)
    def SnapshotUmount(self, node: Node, *, ref: str, id: str) -> Work:
        """Unmount a snapshot."""
        return Work("snapshot-umount", ref, lambda _: snapshot.umount_snapshot(node, ref, id))

    @varlinkmethod
    async def Unused(self, *, ref: str) -> UnusedRows:
        """Return how much space of the node the disks of an environment take, and use."""
        rows = await self.query(compact.unused, ref)
        return {"disks": [row._asdict() for row in rows]}

    @streaming(Freed)
    def Compact(self, node: Node, *, ref: str) -> Work:
        """Give space that is not used inside back to the node.  Can be called off."""
        return Work(
            "compact",
            ref,
            lambda task: compact.compact(node, ref, progress=task),
            lambda done: {"freed": sum(freed for _, freed in done.freed)},
            cancellable=True,
        )

    @streaming(Layout)
    def Convert(self, node: Node, *, ref: str, layout: str) -> Work:
        """Copy the disk of a stopped environment into another layout, and compare the copy.

        Can be called off.
        """
        return Work(
            "convert",
            ref,
            lambda task: convert.convert(node, ref, layout, progress=task),
            lambda done: {"before": done.before, "files": done.files},
            cancellable=True,
        )
