"""Back up environments, list, check and delete backups.  (Restore: operations/restore.py.)

A backup commits when its manifest gets its name (backup/repository.py).  What a failed, cancelled
or killed one leaves is data that no backup refers to; the next removal collects it.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, NamedTuple
from uuid import uuid4

from pyvz.backup.chunk import Writer
from pyvz.backup.manifest import FULL, Disk, File, Manifest, is_file_name, parse_id
from pyvz.backup.repository import Repository
from pyvz.errors import (
    BackupDamaged,
    BackupNotFound,
    EnvironmentNotFound,
    PrivateMissing,
    UsageError,
)
from pyvz.linux import file
from pyvz.model.environment import Environment, Kind, canonical_uuid
from pyvz.model.task import NoProgress, Progress
from pyvz.operations import (
    backuplease,
    backupstorage,
    capture,
    cloudpassword,
    home,
    machinebackup,
    provision,
    vncpassword,
)
from pyvz.operations.backupstorage import Where
from pyvz.operations.node import Node
from pyvz.storage import base as storage

log = logging.getLogger(__name__)

_FILE_LIMIT: Final = 1 << 20
_BESIDE: Final = ("scripts", "templates")


class Request(NamedTuple):
    """What to back up, and how.

    full: begin a new chain.  where: the repository.  owner: who asked.
    """

    full: bool = False
    description: str = ""
    where: Where = Where()
    owner: str = "root"


class Row(NamedTuple):
    """A backup as lists show it."""

    manifest: Manifest
    damaged: bool


def create(node: Node, ref: str, request: Request, progress: Progress | None = None) -> Manifest:
    """Back up an environment, in whatever state it is; returns the backup.

    Incremental, if there is an earlier backup to go on from, unless `full`.
    Raises Locked, NoSpace, StorageError, Cancelled: no backup was made then.
    """
    progress = progress or NoProgress()
    env = node.registry.resolve(ref)
    opening = backupstorage.opened(node, request.where, progress, make=True)
    with (
        home.storage_errors(f"{env.name} could not be backed up"),
        opening as repository,
        repository.shared(),
        backuplease.alone_with(node, env.uuid),
        repository.writer() as writer,
    ):
        parent = None if request.full else _parent(repository, env)
        draft = _draft(node, env, request, parent)
        if env.kind == Kind.VM:
            both = (repository, writer)
            manifest = _store_machine(node, env, both, (draft, parent), progress)
        else:
            store = (repository, writer, request.where)
            manifest = _store(node, env, store, (draft, parent), progress)
    node.publish("ve-backup", env, backup=manifest.tag)
    return manifest


def _store(
    node: Node,
    env: Environment,
    store: tuple[Repository, Writer, Where],
    plan: tuple[Manifest, Manifest | None],
    progress: Progress,
) -> Manifest:
    """Store the disks and commit the backup.

    Images are read without the lease: from then on the environment may do what it likes.
    """
    repository, writer, where = store
    draft, parent = plan
    disks: tuple[Disk, ...] = ()
    copies: capture.Images | None = None
    with ExitStack() as stack:
        with node.lease(env, "backup"):
            provision.repair(node, env)
            files = _files(env)
            known, _ = repository.readable(env.uuid)
            able = _capabilities(env)
            if able is not None and able.image:
                place = (backupstorage.name_of(node, where), known)
                copies = stack.enter_context(capture.images_of(node, env, plan, place))
            elif able is not None and _has_several(env, able):
                with capture.shots_of(node, env) as shots:
                    disks = shots.back_up(writer, repository.chunks, parent, progress)
            elif able is not None:
                both = (writer, repository.chunks)
                disks = (capture.tree_of(node, env, both, parent, progress),)
        if copies is not None:
            disks = copies.back_up(writer, repository.chunks, parent, progress)
        writer.flush()
        progress.check()
        manifest = replace(draft, files=files, disks=disks, stored=writer.stored)
        repository.commit(manifest)
    if copies is not None and able is not None:
        copies.keep(reference=able.reflink)
    return manifest


def _store_machine(
    node: Node,
    env: Environment,
    store: tuple[Repository, Writer],
    plan: tuple[Manifest, Manifest | None],
    progress: Progress,
) -> Manifest:
    """Store the disks of a virtual machine and commit the backup.

    The lease is held until the disks are open, and when a storage daemon shows those of one that
    does not run, to the end.
    """
    repository, writer = store
    draft, parent = plan
    with ExitStack() as held, ExitStack() as stack:
        held.enter_context(node.lease(env, "backup"))
        provision.repair(node, env)
        files = _files(env)
        copies = stack.enter_context(machinebackup.disks_of(node, env, draft, parent))
        if copies.live:
            held.close()
        disks = copies.back_up(writer, repository.chunks, parent, progress)
        writer.flush()
        progress.check()
        manifest = replace(draft, files=files, disks=disks, stored=writer.stored)
        repository.commit(manifest)
        copies.keep()
    return manifest


def _has_several(env: Environment, able: storage.Capabilities) -> bool:
    return (
        able.disks and len(storage.many_disks(storage.find(env.home), env.home).disks(env.home)) > 1
    )


def _capabilities(env: Environment) -> storage.Capabilities | None:
    """Return what the disk's driver can do; None for a container without a disk."""
    try:
        return storage.find(env.home).capabilities(env.home)
    except PrivateMissing:
        if env.conf.is_file():
            return None
        raise


def _parent(repository: Repository, env: Environment) -> Manifest | None:
    """Return the newest backup of the environment, when an incremental can go on from it."""
    good, _ = repository.readable(env.uuid)
    if not good or repository.is_damaged(good[-1]):
        return None
    return good[-1]


def _draft(node: Node, env: Environment, request: Request, parent: Manifest | None) -> Manifest:
    """Return the manifest of the backup to make, without its data."""
    return Manifest(
        chain=parent.chain if parent else str(uuid4()),
        number=parent.number + 1 if parent else FULL,
        uuid=env.uuid,
        envid=env.envid,
        name=env.name,
        kind=str(env.kind),
        home=home.spelled(node, env.home),
        host=socket.gethostname(),
        server=home.owner_id(node),
        owner=request.owner,
        created=time.time(),
        description=request.description,
        stored=0,
        files=(),
        disks=(),
    )


def _files(env: Environment) -> tuple[File, ...]:
    """Return the small files of the home: its configuration, scripts and records of templates."""
    paths = [env.conf]
    if env.kind == Kind.VM:
        paths += [env.home / vncpassword.FILE, env.home / cloudpassword.FILE]
    for directory in _BESIDE:
        paths += sorted(path for path in (env.home / directory).rglob("*"))
    found = []
    for path in paths:
        relative = os.fspath(path.relative_to(env.home))
        if path.is_symlink() or not path.is_file() or not is_file_name(relative):
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        found.append(File(relative, mode & 0o777, file.read_text_limited(path, _FILE_LIMIT)))
    return tuple(found)


# What is there


def rows(node: Node, ref: str | None = None, where: Where | None = None) -> list[Row]:
    """Return all backups, or those of one environment (which may be gone), chains together.

    Raises BackupNotFound (no such environment has any).
    """
    with ExitStack() as stack:
        try:
            repository = stack.enter_context(backupstorage.opened(node, where or Where()))
        except BackupNotFound:
            return []
        uuid = None if ref is None else find_uuid(node, repository, ref)
        good, bad = repository.readable(uuid)
        for error in bad:
            log.warning("%s", error)
        begun = {each.chain: each.created for each in good if each.number == FULL}
        good.sort(key=lambda m: (m.uuid, begun.get(m.chain, m.created), m.chain, m.number))
        return [Row(each, repository.is_damaged(each)) for each in good]


def find_uuid(node: Node, repository: Repository, ref: str) -> str:
    """Return the UUID of an environment that is registered, or of which there are backups."""
    try:
        return node.registry.resolve(ref).uuid
    except EnvironmentNotFound:
        known, _ = repository.readable()
        uuid = canonical_uuid(ref)
        found = {each.uuid for each in known if ref in {each.name, each.envid} or uuid == each.uuid}
        if len(found) == 1:
            return found.pop()
        raise


def latest(node: Node, repository: Repository, ref: str) -> Manifest:
    """Return the newest backup of an environment; raises BackupNotFound."""
    uuid = find_uuid(node, repository, ref)
    good, bad = repository.readable(uuid)
    if not good:
        if bad:
            raise bad[0]
        raise BackupNotFound(f"There is no backup of {ref} in {repository.path}")
    return good[-1]


def verify(
    node: Node,
    ref: str | None = None,
    tag: str | None = None,
    *,
    where: Where = Where(),  # noqa: B008  a value
    progress: Progress | None = None,
) -> list[str]:
    """Read every byte of one backup (tag), of an environment's, or of all; return what is wrong."""
    progress = progress or NoProgress()
    problems: list[str] = []
    opening = backupstorage.opened(node, where, progress)
    with opening as repository, repository.shared():
        if tag is not None:
            chosen = [repository.find(parse_id(tag))]
        else:
            uuid = None if ref is None else find_uuid(node, repository, ref)
            chosen, bad = repository.readable(uuid)
            problems += [error.message for error in bad]
        for manifest in chosen:
            found = repository.verify(manifest, progress)
            repository.mark(manifest, damaged=bool(found))
            problems += [f"{manifest.tag} of {manifest.name}: {each}" for each in found]
    return problems


# Removal


def delete(
    node: Node,
    ref: str | None = None,
    tag: str | None = None,
    *,
    keep_chain: bool = False,
    where: Where = Where(),  # noqa: B008  a value
    progress: Progress | None = None,
) -> list[str]:
    """Remove a backup and those of its chain after it, or all of an environment; return the tags.

    keep_chain: only the one backup; the others of its chain stay (CDspTask Task_RemoveVmBackup of
    the original; there the others are merged, here each is whole by itself).
    """
    progress = progress or NoProgress()
    opening = backupstorage.opened(node, where, progress)
    with opening as repository, repository.alone():
        chosen = _chosen(node, repository, ref, tag, keep_chain=keep_chain)
        # From the end: what is left after a death is a chain without a hole.
        for manifest in sorted(chosen, key=lambda each: -each.number):
            repository.remove(manifest)
        try:
            freed = repository.tidy(progress)
            log.info("%s: %d bytes freed", repository.path, freed)
        except BackupDamaged as error:
            log.warning("no data was removed, another backup is damaged: %s", error)
    return [manifest.tag for manifest in chosen]


def _chosen(
    node: Node, repository: Repository, ref: str | None, tag: str | None, *, keep_chain: bool
) -> list[Manifest]:
    if tag is None:
        if ref is None:
            raise UsageError("Neither an environment nor a backup is named")
        found, bad = repository.readable(find_uuid(node, repository, ref))
        if bad:
            raise bad[0]
        if not found:
            raise BackupNotFound(f"There is no backup of {ref} in {repository.path}")
        return found
    first = repository.find(parse_id(tag))
    if keep_chain:
        return [first]
    good, _ = repository.readable(first.uuid)
    return [m for m in good if m.chain == first.chain and m.number >= first.number]
