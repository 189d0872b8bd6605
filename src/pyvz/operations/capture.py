"""The disks of an environment, into a repository: what `backup` reads, and when.

A disk that is one image (ploop) is copied by reflink at one moment, with its file system frozen
for that long, and read from the copy while the environment goes on, may stop, move or be deleted.
The copy stays as the reference of the next incremental backup, which reads only what differs
between the two copies:

    <home>/.backup/<repository>/<id of the backup>@<time>/<disk>

Each repository has a reference of its own, so that backups may go to several places in turn; of
those where none was made for the longest time, they are given up.

A disk that is a tree is read twice: first while the container runs, then, with its processes
halted, only what changed since.  The lease is held for all that time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.backup import catalog, content
from pyvz.backup import image as images
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.image import Index, Source
from pyvz.backup.manifest import IMAGE, TREE, Disk, Manifest
from pyvz.backup.tree import Known, Walk
from pyvz.errors import BackupDamaged, FileMissing, Unsupported
from pyvz.linux import file, mount, syscall
from pyvz.linux.extents import Range
from pyvz.model.environment import Environment
from pyvz.model.task import Progress
from pyvz.operations import home
from pyvz.operations.node import Node
from pyvz.storage import base as storage
from pyvz.store.journal import Journal, Record

log = logging.getLogger(__name__)

VERB: Final = "backup"  # of the journal records that `repair` understands
_KEPT: Final = ".backup"
_HALTED: Final = "halted"
_MOST: Final = 3  # repositories with a reference: each may hold on to what changed since


class Copy(NamedTuple):
    """The copy of one disk's image, open."""

    name: str
    driver: str
    path: Path
    source: Source


class Images:
    """The copies of an environment's images, all of one moment."""

    def __init__(self, env: Environment, kept: Path, copies: list[Copy]) -> None:
        self._env = env
        self._kept = kept
        self._copies = copies

    def back_up(
        self, writer: Writer, chunks: Chunks, parent: Manifest | None, progress: Progress
    ) -> tuple[Disk, ...]:
        """Store every disk; of those that PARENT has, only what changed since.  No lease needed."""
        found = []
        for copy in self._copies:
            progress.stage(f"Backing up {copy.name}")
            old, changed = self._since(copy, parent, chunks)
            pages = images.back_up(copy.source, writer, progress, old=old, changed=changed)
            found.append(Disk(copy.name, IMAGE, copy.driver, copy.source.size, None, pages))
        return tuple(found)

    def _since(
        self, copy: Copy, parent: Manifest | None, chunks: Chunks
    ) -> tuple[Index | None, list[Range] | None]:
        """Return the index of the disk in PARENT and what changed; None: all has to be read."""
        if parent is None:
            return None, None
        disk = next((d for d in parent.disks if d.name == copy.name and d.form == IMAGE), None)
        reference = self._kept.parent / parent.reference / copy.name
        usable = reference.is_file() and not reference.is_symlink()
        if disk is None or disk.driver != copy.driver or not usable:
            log.info("%s: no reference of %s: all is read", self._env.name, copy.name)
            return None, None
        try:
            found = storage.load(copy.driver).image_changes(reference, copy.path)
        except (Unsupported, FileMissing, FileNotFoundError) as error:
            # The environment may be moved or deleted meanwhile; our copy stays open.
            log.info("%s: %s: all is read", self._env.name, error)
            return None, None
        ranges = [Range(start + copy.source.offset, length) for start, length in found]
        return content.index_of(disk, chunks), ranges

    def keep(self, *, reference: bool) -> None:
        """After the commit: our copies become the reference (or go); the older ones go."""
        directory = self._kept.parent
        if not directory.is_dir():  # the environment was deleted or moved away meanwhile
            return
        for entry in list(directory.iterdir()):
            if not (reference and entry == self._kept):
                file.remove_tree(entry)


@contextlib.contextmanager
def images_of(
    node: Node, env: Environment, draft: Manifest, place: tuple[str, Sequence[Manifest]]
) -> Iterator[Images]:
    """Copy the images of all disks and yield them open; the caller holds the lease until then.

    place: a name of the repository, and the backups that it has.  When the block raises, the
    copies go; those of a backup that was killed, of which the repository has none, go now.
    """
    repository, known = place
    directory = env.home / _KEPT / repository / draft.reference
    with contextlib.ExitStack() as stack:
        undo = stack.enter_context(contextlib.ExitStack())
        undo.callback(_discard, directory)
        with home.storage_errors(f"The disks of {env.name} could not be copied"):
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(directory.parent, {each.reference for each in known})
            directory.mkdir(mode=0o700)
            copies = _copies(node, env, directory, stack)
        yield Images(env, directory, copies)
        undo.pop_all()


def _sweep(own: Path, known: set[str]) -> None:
    """Remove copies of the repository's directory that are no reference, and the oldest others."""
    for entry in list(own.iterdir()):
        if entry.name not in known:
            file.remove_tree(entry)
    others = [entry for entry in own.parent.iterdir() if entry != own]
    others.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in others:  # "@": of an earlier version, which had one for all
        if "@" in entry.name or entry in others[_MOST - 1 :]:
            file.remove_tree(entry)


def _discard(directory: Path) -> None:
    with contextlib.suppress(OSError):
        file.remove_tree(directory)
        directory.parent.rmdir()
        directory.parent.parent.rmdir()


def _copies(
    node: Node, env: Environment, directory: Path, stack: contextlib.ExitStack
) -> list[Copy]:
    driver = storage.find(env.home)
    several = driver.capabilities(env.home).disks
    names = storage.many_disks(driver, env.home).disks(env.home) if several else ["root.hdd"]
    parts = {}
    with contextlib.ExitStack() as halt:
        if len(names) > 1:  # one freezes by itself; several must be of one moment
            journal = halt.enter_context(_journal(node, env))
            halt.enter_context(_halted(node, env, journal))
        for name in names:
            parts[name] = driver.copy_image(env.home, directory / name, disk=name)
    copies = []
    for name, (offset, size) in parts.items():
        path = directory / name
        path.chmod(0o400)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        stack.callback(os.close, fd)
        copies.append(Copy(name, driver.name, path, Source(fd, offset, size)))
    return copies


def tree_of(
    node: Node,
    env: Environment,
    store: tuple[Writer, Chunks],
    parent: Manifest | None,
    progress: Progress,
) -> Disk:
    """Store the tree of an environment whose disk is a directory; the caller holds the lease."""
    writer, chunks = store
    driver = storage.find(env.home)
    running = env.uuid in node.runtime.running(env.uuid)
    known = _known(parent, chunks)
    with (
        _journal(node, env) as journal,
        _shown(node, env) as root,
        _opened(root) as fd,
    ):
        progress.stage(f"Backing up {env.name}")
        began = time.time_ns()
        if running:
            # Pages that are mapped and dirty change without a trace until they were written out
            # once: then the next write is a fault, which renews the times (page_mkwrite).
            syscall.syncfs(fd)
        walk = Walk(fd, writer, progress, known)
        entries = walk.run()
        if running:
            with _halted(node, env, journal):
                progress.stage(f"Backing up {env.name}: what changed meanwhile")
                first: Known = {entry.path: entry for entry in entries if entry.is_file}
                walk = Walk(fd, writer, progress, first, since=began)
                entries = walk.run()
        pages = catalog.store(entries, writer)
    return Disk(storage.ROOT_DISK, TREE, driver.name, walk.size, _limit(env), pages)


def _known(parent: Manifest | None, chunks: Chunks) -> Known:
    """Return the files of the earlier backup; none when its catalog cannot be read."""
    disk = next((d for d in parent.disks if d.form == TREE), None) if parent else None
    if disk is None:
        return {}
    try:
        return {entry.path: entry for entry in content.catalog_of(disk, chunks) if entry.is_file}
    except BackupDamaged as error:
        log.warning("an earlier backup is of no use: %s", error)
        return {}


def _limit(env: Environment) -> int | None:
    """Return the size that a restored disk needs, where the driver keeps one."""
    return storage.limit(storage.find(env.home), env.home)


@contextlib.contextmanager
def _opened(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _shown(node: Node, env: Environment) -> Iterator[Path]:
    """Yield the mounted root; one that is not mounted is, read-only, for the block."""
    root = node.root(env)
    if mount.is_mount_point(root):
        yield root
        return
    place = _place(node, env.uuid)
    driver = storage.find(env.home)
    driver.mount(env.home, place, readonly=True)
    try:
        yield place
    finally:
        driver.umount(env.home, place)
        _take_away(place)


def _place(node: Node, uuid: str) -> Path:
    return node.paths.run / "backup" / uuid


def _take_away(place: Path) -> None:
    mount.umount(place)
    with contextlib.suppress(OSError):
        place.rmdir()


@contextlib.contextmanager
def _journal(node: Node, env: Environment) -> Iterator[Journal]:
    """Announce a backup for the block: `repair` undoes what a death in it leaves."""
    journal = Journal.begin(node.paths, env.uuid, VERB, home.to_data(env))
    try:
        yield journal
    finally:
        journal.done()


@contextlib.contextmanager
def _halted(node: Node, env: Environment, journal: Journal) -> Iterator[None]:
    """Halt the processes of a running container for the block; one that is paused stays so."""
    if env.uuid not in node.runtime.running(env.uuid) or node.cgroups.frozen(env.uuid):
        yield
        return
    journal.note(_HALTED)
    try:
        node.runtime.pause(env.uuid)
        yield
    finally:
        node.runtime.unpause(env.uuid)


def repair(node: Node, record: Record) -> None:
    """Undo what a killed backup left of an environment, and close its record; repeatable."""
    running = record.uuid in node.runtime.running(record.uuid)
    if record.step(_HALTED) and running and node.cgroups.frozen(record.uuid):
        log.warning("%s was halted by a backup that was killed: it goes on", record.uuid)
        node.runtime.unpause(record.uuid)
    _take_away(_place(node, record.uuid))
    Journal.forget(node.paths, record.uuid)
