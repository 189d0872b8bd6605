"""A repository: a directory with backups of any number of environments, and their chunks.

    <repository>/pyvz-backup.json              what the directory is
    <repository>/lock                          shared: backup, restore, verify; exclusive: removal
    <repository>/backups/<uuid>/<id>.json      manifests; their rename is the commit of a backup
    <repository>/backups/<uuid>/<id>.damaged   `verify` found it so: no incremental goes on from it
    <repository>/chunks/, temporary/           see `chunk`

A chunk is removed only by `collect`, which has the repository for itself and looks at every
manifest first: with one that cannot be read, nothing is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from pyvz.backup import content
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.manifest import FORMAT, Manifest, shown
from pyvz.errors import (
    AlreadyExists,
    BackupDamaged,
    BackupNotFound,
    Locked,
    StorageError,
)
from pyvz.linux import file
from pyvz.model.task import Progress

_MARK: Final = "pyvz-backup.json"
_MANIFEST_LIMIT: Final = 256 << 20  # bytes
_DAMAGED: Final = ".damaged"
_OWN: Final = frozenset({"backups", "chunks", "temporary", "lock", "lost+found"})
LOCK_TIMEOUT: Final = 10.0  # seconds

Referenced = Callable[[Manifest], Iterator[bytes]]  # all chunks that a backup needs


class Repository:
    """An open repository.  Methods that change it say which lock they need."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks = Chunks(path)
        self._backups = path / "backups"

    @classmethod
    def open(cls, path: Path) -> Repository:
        """Return the repository at PATH.  Raises BackupNotFound, StorageError (not one)."""
        try:
            raw = json.loads(file.read_text_limited(path / _MARK))
        except FileNotFoundError as error:
            raise BackupNotFound(f"There are no backups in {path}") from error
        except ValueError as error:
            raise StorageError(f"{path / _MARK} cannot be read") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise StorageError(f"{path} holds backups of another version")
        return cls(path)

    @classmethod
    def make(cls, path: Path) -> Repository:
        """Return the repository at PATH, made when there is nothing; StorageError for other things.

        May be killed at any step: what says "a repository" is written last.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (path / _MARK).exists():
            names = {entry.name for entry in os.scandir(path)} - _OWN
            if any(not name.startswith(f".{_MARK}.") for name in names):
                raise StorageError(
                    f"{path} is not empty and holds no backups: it is left alone",
                    hint="Name an empty directory.",
                )
            made = cls(path)
            made.chunks.make_directories()
            (path / "backups").mkdir(mode=0o700, exist_ok=True)
            mark = json.dumps({"format": FORMAT, "uuid": str(uuid4())}) + "\n"
            file.write_atomic(path / _MARK, mark, 0o600)
        return cls.open(path)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep chunks from being removed; raises Locked."""
        with self._lock(shared=True):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the repository for oneself; raises Locked."""
        with self._lock(shared=False):
            yield

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        held = file.flock(self.path / "lock", timeout=LOCK_TIMEOUT, shared=shared)
        try:
            held.__enter__()
        except Locked as error:
            raise Locked(
                f"The backups in {self.path} are in use by another operation",
                hint="Try again when the backup, restore or removal under way has ended.",
            ) from error
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    # Backups

    def ids(self, uuid: str | None = None) -> list[tuple[str, str]]:
        """Return (UUID of the environment, id of the backup) of all, or of one environment's."""
        pattern = f"{uuid or '*'}/*.json"
        return sorted((path.parent.name, path.stem) for path in self._backups.glob(pattern))

    def manifests(self, uuid: str | None = None) -> list[Manifest]:
        """Return all backups, or one environment's, oldest first; BackupDamaged for a bad one."""
        found = [self._read(env, ident) for env, ident in self.ids(uuid)]
        return sorted(found, key=lambda each: (each.uuid, each.created, each.number))

    def readable(self, uuid: str | None = None) -> tuple[list[Manifest], list[BackupDamaged]]:
        """Return the backups that can be read, oldest first, and what is wrong with others."""
        good: list[Manifest] = []
        bad: list[BackupDamaged] = []
        for env, ident in self.ids(uuid):
            try:
                good.append(self._read(env, ident))
            except BackupNotFound:  # removed meanwhile
                continue
            except BackupDamaged as error:
                bad.append(error)
        return sorted(good, key=lambda each: (each.uuid, each.created, each.number)), bad

    def find(self, ident: str) -> Manifest:
        """Return the backup with that id; raises BackupNotFound, BackupDamaged."""
        for env, known in self.ids():
            if known == ident:
                return self._read(env, ident)
        raise BackupNotFound(f"There is no backup {shown(ident)} in {self.path}")

    def _read(self, uuid: str, ident: str) -> Manifest:
        path = self._manifest(uuid, ident)
        manifest = Manifest.from_json(self.text(uuid, ident), source=os.fspath(path))
        if (manifest.uuid, manifest.id) != (uuid, ident):
            raise BackupDamaged(f"{path} is the manifest of another backup")
        return manifest

    def text(self, uuid: str, ident: str) -> str:
        """Return a manifest as it is written; raises BackupNotFound."""
        try:
            return file.read_text_limited(self._manifest(uuid, ident), _MANIFEST_LIMIT)
        except FileNotFoundError as error:
            raise BackupNotFound(f"There is no backup {shown(ident)} in {self.path}") from error

    def _manifest(self, uuid: str, ident: str) -> Path:
        return self._backups / uuid / f"{ident}.json"

    def commit(self, manifest: Manifest) -> None:
        """Make a backup whose chunks are flushed a backup; shared lock held."""
        path = self._manifest(manifest.uuid, manifest.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file.fsync_directory(self._backups)
        if path.exists():
            raise AlreadyExists(f"There is a backup {manifest.tag} already")
        file.write_atomic(path, manifest.to_json(), 0o600)

    def remove(self, manifest: Manifest) -> None:
        """Forget a backup; its chunks go with `collect`.  Lock held: alone."""
        self.mark(manifest, damaged=False)
        path = self._manifest(manifest.uuid, manifest.id)
        path.unlink(missing_ok=True)
        file.fsync_directory(path.parent)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()

    def mark(self, manifest: Manifest, *, damaged: bool) -> None:
        """Note whether a check found the backup damaged."""
        path = self._manifest(manifest.uuid, manifest.id).with_suffix(_DAMAGED)
        if damaged:
            path.touch(mode=0o600)
        else:
            path.unlink(missing_ok=True)

    def is_damaged(self, manifest: Manifest) -> bool:
        """Whether the last check found the backup damaged."""
        return (
            self._manifest(manifest.uuid, manifest.id)
            .with_name(f"{manifest.id}{_DAMAGED}")
            .exists()
        )

    def writer(self) -> Writer:
        """Return what adds chunks, a context manager; shared lock held."""
        return Writer(self.chunks)

    def verify(self, manifest: Manifest, progress: Progress) -> list[str]:
        """Read every byte of a backup; return what is wrong, one line each.  Shared lock held."""
        return content.verify(manifest, self.chunks, progress)

    def tidy(self, progress: Progress) -> int:
        """Remove what no backup needs any more; see `collect`."""
        return self.collect(lambda each: content.referenced(each, self.chunks), progress)

    def collect(self, referenced: Referenced, progress: Progress) -> int:
        """Remove every chunk that no backup refers to; return the bytes freed.  Lock held: alone.

        Raises BackupDamaged, before anything is removed, when a manifest cannot be read or what
        it refers to cannot be known.
        """
        progress.stage("Looking which data is in use")
        used: set[bytes] = set()
        for manifest in self.manifests():
            for digest in referenced(manifest):
                used.add(digest)
            progress.check()
        progress.stage("Removing data that no backup uses")
        self.chunks.sweep()
        freed = 0
        for number, digest in enumerate(self.chunks.names()):
            if digest not in used:
                freed += self.chunks.remove(digest)
            if number % 1024 == 0:
                progress.check()
        return freed
