"""What a backup consists of, whatever the form of its disks: all its chunks, and their check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvz.backup import catalog, image, treerestore
from pyvz.backup.chunk import Audit, Chunks
from pyvz.backup.image import Index
from pyvz.backup.manifest import HOLE, IMAGE, Disk, Manifest
from pyvz.errors import BackupDamaged
from pyvz.model.task import Progress


def index_of(disk: Disk, chunks: Chunks) -> Index:
    """Return the index of a disk of the form IMAGE."""
    return Index(disk.size, disk.pages, chunks.get)


def catalog_of(disk: Disk, chunks: Chunks) -> Iterator[catalog.Entry]:
    """Yield the files of a disk of the form TREE."""
    return catalog.load(disk.pages, chunks.get)


def referenced(manifest: Manifest, chunks: Chunks) -> Iterator[bytes]:
    """Yield the names of all chunks that a backup needs (some more than once).

    Raises BackupDamaged when that cannot be known.
    """
    for disk in manifest.disks:
        with damage(manifest, disk):
            if disk.form == IMAGE:
                yield from index_of(disk, chunks).names()
            else:
                yield from (bytes.fromhex(page) for page in disk.pages if page != HOLE)
                for entry in catalog_of(disk, chunks):
                    yield from (piece.chunk for piece in entry.pieces)


def verify(manifest: Manifest, chunks: Chunks, progress: Progress) -> list[str]:
    """Read all data of a backup; return what is wrong, one line each (none: it is whole).

    Damaged chunks lose their names, so that the next backup stores them anew.
    """
    audit = Audit(chunks.repository)
    problems: list[str] = []
    for disk in manifest.disks:
        progress.stage(f"Checking {disk.name}")
        found = _page_problems(disk, audit) or _piece_problems(disk, audit, progress)
        problems += [f"{disk.name}: {problem}" for problem in found]
    return problems


def _page_problems(disk: Disk, chunks: Chunks) -> list[str]:
    """Return what is wrong with the index or catalog itself; all of its pages are read."""
    problems = []
    for page in disk.pages:
        try:
            if page != HOLE:
                chunks.get(bytes.fromhex(page))
        except BackupDamaged as error:
            problems.append(error.message)
    return problems


def _piece_problems(disk: Disk, chunks: Chunks, progress: Progress) -> list[str]:
    try:
        if disk.form == IMAGE:
            return image.verify(index_of(disk, chunks), chunks, progress, set())
        return treerestore.verify(catalog_of(disk, chunks), chunks, progress)
    except BackupDamaged as error:  # a page that is whole and makes no sense
        return [error.message]


@contextmanager
def damage(manifest: Manifest, disk: Disk) -> Iterator[None]:
    """Name the backup and the disk in a BackupDamaged of the block."""
    try:
        yield
    except BackupDamaged as error:
        raise BackupDamaged(
            f"The backup {manifest.tag} of {manifest.name} is damaged: "
            f"{disk.name}: {error.message}",
            hint="Other backups are not affected. prlctl backup-verify shows all damage.",
        ) from error
