"""The interface io.pyvz.Backup: backups of environments, and what is brought back from them.

No `from __future__ import annotations` here: see replies.py.
"""

import functools
import logging
import os
from typing import TypedDict

from asyncvarlink import FileDescriptor, VarlinkInterface, varlinkmethod

from pyvz.backup.manifest import FULL, Manifest
from pyvz.backup.serve import serve
from pyvz.daemon import farend
from pyvz.daemon.calls import Api, acting, streaming
from pyvz.daemon.replies import Empty, Uuid
from pyvz.daemon.tasks import Work
from pyvz.errors import VZError
from pyvz.operations import backup, backupstorage, restore
from pyvz.operations.backup import Request, Row
from pyvz.operations.backupstorage import Where
from pyvz.operations.node import Node
from pyvz.operations.restore import Wanted

logger = logging.getLogger(__name__)


class BackupDisk(TypedDict):
    """A disk in a backup.  size: bytes of the disk, or of the files in it."""

    name: str
    driver: str
    size: int


class BackupRow(TypedDict):
    """One backup.  id: with braces.  incremental: how it was made; it is whole by itself.

    created: seconds since the epoch.  size: bytes by which it made the storage larger.
    server: id of the node.  damaged: what the last check found.
    """

    uuid: str
    name: str
    host: str
    owner: str
    id: str
    created: float
    incremental: bool
    size: int
    description: str
    server: str
    home: str
    disks: list[BackupDisk]
    damaged: bool


class BackupRows(TypedDict):
    """Backups, chain by chain."""

    backups: list[BackupRow]


class BackupMade(TypedDict):
    """The new backup: its id, and bytes by which it made the storage larger."""

    id: str
    size: int
    incremental: bool


class BackupIds(TypedDict):
    """Backups."""

    ids: list[str]


class BackupTarget(TypedDict):
    """Where the files of the backup are."""

    target: str


class Problems(TypedDict):
    """What is damaged, one line each."""

    problems: list[str]


def _row(row: Row) -> BackupRow:
    manifest = row.manifest
    return {
        "uuid": manifest.uuid,
        "name": manifest.name,
        "host": manifest.host,
        "owner": manifest.owner,
        "id": manifest.tag,
        "created": manifest.created,
        "incremental": manifest.number != FULL,
        "size": manifest.stored,
        "description": manifest.description,
        "server": manifest.server,
        "home": manifest.home,
        "disks": [
            {"name": disk.name, "driver": disk.driver, "size": disk.size} for disk in manifest.disks
        ],
        "damaged": row.damaged,
    }


def _made(manifest: Manifest) -> BackupMade:
    return {
        "id": manifest.tag,
        "size": manifest.stored,
        "incremental": manifest.number != FULL,
    }


class Backup(Api, VarlinkInterface, name="io.pyvz.Backup"):
    """Backups.  `ref` is an environment (for the ones that bring back, it may be gone); `tag` the
    id of a backup; `path` the directory of a storage other than the node's own, `storage` another
    node that has it ([user@]host[:port]).
    """

    @varlinkmethod(return_parameter="backups", allow_foreign=True)
    async def List(
        self, *, ref: str | None = None, path: str | None = None, storage: str | None = None
    ) -> list[BackupRow]:
        """Return all backups, or those of one environment."""
        rows: list[Row] = await self.query(backup.rows, ref, Where(path, storage))
        return [_row(row) for row in rows]

    @streaming(BackupMade)
    def Create(
        self,
        node: Node,
        *,
        ref: str,
        full: bool = False,
        description: str = "",
        path: str | None = None,
        storage: str | None = None,
    ) -> Work:
        """Back up an environment in whatever state it is: what changed since its last backup, or,
        when there is none or with `full`, all.  Can be called off.
        """
        where = Where(path, storage)
        request = Request(full=full, description=description, where=where)
        return Work(
            "backup",
            ref,
            lambda task: backup.create(node, ref, request, task),
            _made,
            cancellable=True,
        )

    @streaming(BackupIds)
    def Delete(
        self,
        node: Node,
        *,
        ref: str | None = None,
        tag: str | None = None,
        keep_chain: bool = False,
        path: str | None = None,
        storage: str | None = None,
    ) -> Work:
        """Remove one backup and those of its chain that were made after it (keep_chain: only the
        one), or without a tag all of the environment.
        """
        return Work(
            "delete backup",
            tag or ref or "",
            lambda task: backup.delete(
                node, ref, tag, keep_chain=keep_chain, where=Where(path, storage), progress=task
            ),
            lambda ids: {"ids": ids},
        )

    @streaming(Uuid)
    def Restore(  # noqa: PLR0913  what the caller may choose
        self,
        node: Node,
        *,
        ref: str | None = None,
        tag: str | None = None,
        name: str | None = None,
        dst: str | None = None,
        path: str | None = None,
        storage: str | None = None,
    ) -> Work:
        """Bring back the newest backup of `ref`, or the one with that tag: in place (it has to be
        stopped), as it was (it is gone), or as another environment (`name`).  Can be called off.
        """
        wanted = Wanted(ref, tag, name, dst, Where(path, storage))
        return Work(
            "restore",
            tag or ref or "",
            lambda task: restore.restore(node, wanted, task),
            lambda env: {"uuid": env.uuid},
            cancellable=True,
        )

    @streaming(BackupTarget)
    def Mount(
        self,
        node: Node,
        *,
        tag: str,
        target: str | None = None,
        path: str | None = None,
        storage: str | None = None,
    ) -> Work:
        """Show the files of a backup's root disk, read-only, at `target` or a place of ours."""
        return Work(
            "mount backup",
            tag,
            lambda task: restore.show(node, tag, target, where=Where(path, storage), progress=task),
            lambda shown: {"target": str(shown.target)},
            cancellable=True,
        )

    @acting(Empty)
    def Umount(self, node: Node, *, tag: str) -> Work:
        """Take away what Mount made."""
        return Work("umount backup", tag, lambda _: restore.hide(node, tag), lambda _: {})

    @streaming(Problems)
    def Verify(
        self,
        node: Node,
        *,
        ref: str | None = None,
        tag: str | None = None,
        path: str | None = None,
        storage: str | None = None,
    ) -> Work:
        """Read all data of a backup, of an environment's, or of all; tell what is damaged."""
        return Work(
            "verify backup",
            tag or ref or "",
            lambda task: backup.verify(node, ref, tag, where=Where(path, storage), progress=task),
            lambda problems: {"problems": problems},
            cancellable=True,
        )

    @varlinkmethod(return_parameter="stream", allow_foreign=True)
    async def Serve(self, *, reading: FileDescriptor, writing: FileDescriptor) -> FileDescriptor:
        """Let another node, which asks on `reading` and hears on `writing`, keep its backups here
        (vzmdest backup).  Returns a socket that ends when that has ended.
        """
        return farend.answer("backups", functools.partial(_serve, self.node), reading, writing)


def _serve(node: Node, reading: int, writing: int) -> None:
    """Answer the other node until it goes (in a thread of its own)."""
    try:
        serve(reading, writing, functools.partial(backupstorage.place, node))
    except (VZError, OSError) as error:
        logger.warning("backups of another node: %s", error)
    except Exception:
        logger.exception("backups of another node, pid %d", os.getpid())
    finally:
        os.close(reading)
        os.close(writing)
