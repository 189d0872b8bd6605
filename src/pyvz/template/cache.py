"""OS template caches: compressed tars of a ready root folder.

    <area>/cache/<os>.plain.tar.zst            the cache; `.plain`: a tree, not an image
    <area>/cache/<os>.plain.tar.zst.sha256     its checksum, as sha256sum(1) writes it
    <area>/cache/<os>.plain.tar.zst.verified   the state of the file that was last verified
    <area>/cache/<os>.plain.tar.zst.lock       flock(2) of who builds or removes it
    <area>/cache/<os>.plain.tar.zst-old        the one before, while it is being replaced
    <area>/cache/.staging-<os>-<random>/       a build; locked by flock(2) as long as it lives

A cache appears by rename(2), after its checksum, and never changes afterwards.  Readers take no
lock: an open file stays readable when it is replaced.  What a killed builder left is unlocked, so
the next one sweeps it.  Caches of other makers (gz, lz4, xz, without checksum; `<os>.tar.gz` of
OpenVZ 6) are found and tested too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CacheMissing, CommandFailed, StorageError, TemplateError, TemplateNotFound
from pyvz.linux import run
from pyvz.linux.file import remove_tree, write_atomic
from pyvz.model.task import Progress
from pyvz.model.vzconf import under
from pyvz.store.nodeconf import node_config
from pyvz.store.paths import Paths
from pyvz.template.filelock import lock
from pyvz.template.metadata import check_name, machine

TESTERS = {"zst": "zstd", "lz4": "lz4", "xz": "xz", "gz": "gzip"}  # all of them know `-t`
DEFAULT_COMPRESSION = "zst"
CHUNK = 1 << 20
TEST_TIMEOUT = 600.0
REMOVE_TIMEOUT = 10.0
_POLL = 0.1


class CacheFile(NamedTuple):
    """One cache on disk."""

    path: Path
    template: str  # name of the OS template

    @property
    def built(self) -> float:
        """When it was made, in seconds since the epoch."""
        return self.path.stat().st_mtime


def area(paths: Paths) -> Path:
    """Return the template area of the node (TEMPLATE in vz.conf)."""
    return under(paths.root, node_config(paths).template)


def directory(paths: Paths) -> Path:
    """Return the folder of caches."""
    return area(paths) / "cache"


def path_of(paths: Paths, name: str, compression: str = DEFAULT_COMPRESSION) -> Path:
    """Return where a cache that we build is kept."""
    return directory(paths) / f"{name}.plain.tar.{compression}"


def find(paths: Paths, name: str) -> CacheFile | None:
    """Return the cache of the OS template NAME, None when it has none.

    NAME may have the leading dot of DEF_OSTEMPLATE and may lack its architecture.
    """
    bare = check_name(name)
    for wanted in (bare, f"{bare}-{machine()}"):
        for middle in (".plain.tar.", ".tar."):
            for compression in TESTERS:
                path = directory(paths) / f"{wanted}{middle}{compression}"
                if path.is_file():
                    return CacheFile(path, wanted)
    return None


def require(paths: Paths, name: str) -> CacheFile:
    """Return the cache of NAME; raise CacheMissing."""
    found = find(paths, name)
    if found is None:
        raise CacheMissing(
            f"the OS template {check_name(name)} has no cache",
            hint=f"'vzpkg create cache {check_name(name)}' makes it.",
        )
    return found


def caches(paths: Paths) -> list[CacheFile]:
    """Return every cache of the node, sorted by the name of its template."""
    try:
        names = sorted(path.name for path in directory(paths).iterdir())
    except FileNotFoundError:
        return []
    found: dict[str, CacheFile] = {}
    for name in names:
        stem, separator, compression = name.rpartition(".tar.")
        if separator and compression in TESTERS and not stem.endswith((".ploop", ".ploopv2")):
            template = stem.removesuffix(".plain")
            cache = find(paths, template) if not template.startswith(".") else None
            if cache is not None:
                found[cache.template] = cache
    return [found[name] for name in sorted(found)]


@contextlib.contextmanager
def staging(paths: Paths, name: str) -> Iterator[Path]:
    """Make a folder for building the cache of NAME; remove it whatever happens.

    What killed builders left behind is removed first.
    """
    parent = directory(paths)
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    path = Path(tempfile.mkdtemp(prefix=f".staging-{name}-", dir=parent))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield path
    finally:
        try:
            _remove_staging(path)
        finally:
            os.close(fd)


def _remove_staging(path: Path) -> None:
    """Remove the tree, also when the last program of a build is still about to die in it."""
    deadline = time.monotonic() + REMOVE_TIMEOUT
    while True:
        try:
            remove_tree(path)
        except (OSError, StorageError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)
        else:
            return


def sweep(parent: Path) -> None:
    """Remove the staging folders below PARENT whose builder is gone."""
    for path in parent.glob(".staging-*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A folder younger than a moment may be one whose maker has not locked it yet.
            if time.time() - os.fstat(fd).st_mtime > 1.0:
                remove_tree(path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def commit(archive: Path, final: Path) -> None:
    """Put the finished ARCHIVE (in the same file system) at FINAL, with its checksum.

    The cache before is kept as `<file>-old` until the new one is there.
    """
    digest = _digest(archive)
    _sync(archive)
    old = final.with_name(final.name + "-old")
    with contextlib.suppress(FileNotFoundError):
        old.unlink(missing_ok=True)
        os.link(final, old)
    # A reader between these two steps sees a difference, waits for our lock and looks again.
    write_atomic(_checksum_path(final), f"{digest}  {final.name}\n".encode(), 0o644)
    archive.replace(final)
    _write_stamp(final)
    _sync(final.parent)
    old.unlink(missing_ok=True)


def verify(cache: CacheFile, progress: Progress) -> None:
    """Make sure that the cache is whole; raise TemplateError when it is not.

    A file that has not changed since it was verified is not read again.  One without a checksum
    is tested by its compression program.
    """
    if _stamp(cache.path) == _read_text(_stamp_path(cache.path)):
        return
    progress.stage(f"Verifying {cache.path.name}")
    if not _has_checksum(cache):
        _test_archive(cache, progress)
    elif not _matches(cache, progress):
        with lock(cache.path, progress):  # perhaps it was just being replaced
            if not _matches(cache, progress):
                raise _damaged(cache, "its checksum differs")
    _write_stamp(cache.path)


def _has_checksum(cache: CacheFile) -> bool:
    return _checksum_path(cache.path).is_file()


def _matches(cache: CacheFile, progress: Progress) -> bool:
    recorded = _read_text(_checksum_path(cache.path)).partition(" ")[0]
    return _digest(cache.path, progress) == recorded


def _test_archive(cache: CacheFile, progress: Progress) -> None:
    program = TESTERS[cache.path.suffix.removeprefix(".")]
    try:
        run.run([program, "-t", cache.path], timeout=TEST_TIMEOUT, poll=progress.check)
    except CommandFailed as error:
        raise _damaged(cache, error.details or error.message) from error


def _damaged(cache: CacheFile, why: str) -> TemplateError:
    return TemplateError(
        f"the cache {cache.path} is damaged",
        details=why,
        hint=f"Build it again: vzpkg create cache --force {cache.template}",
    )


def remove(paths: Paths, name: str, progress: Progress) -> CacheFile:
    """Remove the cache of NAME and what belongs to it; raise CacheMissing.

    Raises TemplateNotFound for something that cannot be a template's cache.
    """
    cache = require(paths, name)
    if cache.path.parent != directory(paths):
        raise TemplateNotFound(f"{cache.path} is not in the folder of caches")
    with lock(cache.path, progress):
        cache.path.unlink(missing_ok=True)
        for path in (_checksum_path(cache.path), _stamp_path(cache.path)):
            path.unlink(missing_ok=True)
        cache.path.with_name(cache.path.name + "-old").unlink(missing_ok=True)
    return cache


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _stamp(path: Path) -> str:
    # ctime cannot be set by utimensat(2), so a file changed in place is always noticed.
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _write_stamp(path: Path) -> None:
    write_atomic(_stamp_path(path), f"{_stamp(path)}\n".encode(), 0o644)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""


def _digest(path: Path, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress.advance(done, size)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
