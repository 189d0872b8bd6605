"""A tree of files out of a repository: into an empty directory, with everything that it had.

The catalog decides about names only below the directory: every parent is opened by the kernel
with the directory as a border and without following links (openat2).
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from pyvz.backup.catalog import Entry, Piece
from pyvz.backup.chunk import Chunks
from pyvz.errors import BackupDamaged
from pyvz.linux import syscall
from pyvz.model.task import Progress

_RESOLVE: Final = syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_BENEATH
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK)
_KEPT: Final = 64  # chunks


class ChunkCache:
    """The last chunks that were read: small files share them."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()

    def part(self, piece: Piece) -> bytes:
        """Return the content of a piece; raises BackupDamaged."""
        data = self._kept.get(piece.chunk)
        if data is None:
            data = self._kept[piece.chunk] = self._chunks.get(piece.chunk)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(piece.chunk)
        part = data[piece.at : piece.at + piece.length]
        if len(part) != piece.length:
            raise BackupDamaged(f"chunk {piece.chunk.hex()} is too short")
        return part


class Restore:
    """Fills the directory behind a descriptor."""

    def __init__(self, root: int, chunks: Chunks, progress: Progress, *, total: int) -> None:
        self._root = root
        self._cache = ChunkCache(chunks)
        self._progress = progress
        self._total = total
        self._done = 0

    def run(self, entries: Iterable[Entry]) -> None:
        """Make every file of a catalog.  Raises BackupDamaged (names the file), OSError."""
        directories: list[Entry] = []
        for entry in entries:
            if entry.path == ".":
                directories.append(entry)
                continue
            parent, _, name = entry.path.rpartition("/")
            fd = syscall.openat2(self._root, parent or ".", _DIRECTORY, 0, _RESOLVE)
            try:
                if stat.S_ISDIR(entry.mode):
                    os.mkdir(name, 0o700, dir_fd=fd)
                    directories.append(entry)
                else:
                    self._make(fd, name, entry)
            finally:
                os.close(fd)
            self._progress.check()
        # Last and from the bottom up: their times change with what is made in them.
        for entry in reversed(directories):
            fd = syscall.openat2(self._root, entry.path, _DIRECTORY, 0, _RESOLVE)
            try:
                _dress(fd, ".", entry)
            finally:
                os.close(fd)

    def _make(self, directory: int, name: str, entry: Entry) -> None:
        if entry.same:
            self._link(directory, name, entry)
            return
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFREG:
            self._file(directory, name, entry)
        elif kind == stat.S_IFLNK:
            os.symlink(entry.link, name, dir_fd=directory)
        elif kind in _SPECIAL:
            os.mknod(name, kind | 0o600, os.makedev(*entry.rdev), dir_fd=directory)
        else:
            raise BackupDamaged(f"{entry.path} is of no kind that a file can have")
        _dress(directory, name, entry)

    def _link(self, directory: int, name: str, entry: Entry) -> None:
        parent, _, old = entry.same.rpartition("/")
        fd = syscall.openat2(self._root, parent or ".", _DIRECTORY, 0, _RESOLVE)
        try:
            os.link(old, name, src_dir_fd=fd, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(fd)

    def _file(self, directory: int, name: str, entry: Entry) -> None:
        fd = os.open(name, _NEW, 0o600, dir_fd=directory)
        try:
            for piece in entry.pieces:
                data = self._content(entry, piece)
                if os.pwrite(fd, data, piece.offset) != len(data):
                    raise OSError(f"{entry.path} could not be written")
                self._progress.check()
            os.ftruncate(fd, entry.stamp.size)
        finally:
            os.close(fd)
        self._done += entry.stamp.size
        self._progress.advance(self._done, self._total)

    def _content(self, entry: Entry, piece: Piece) -> bytes:
        try:
            return self._cache.part(piece)
        except BackupDamaged as error:
            raise BackupDamaged(f"file {entry.path}: {error.message}") from error


def _dress(directory: int, name: str, entry: Entry) -> None:
    """Give a file its owner, attributes, mode and times, in the order in which they survive."""
    os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISLNK(entry.mode):
        os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=directory)  # chown takes setuid away
    path = f"/proc/self/fd/{directory}/{name}"
    for attribute, value in entry.xattrs.items():
        if attribute.startswith("security.") and attribute != "security.capability":
            with suppress(OSError):  # labels of a module that this node may not have
                os.setxattr(path, attribute, value, follow_symlinks=False)
        else:
            os.setxattr(path, attribute, value, follow_symlinks=False)
    times = (entry.stamp.mtime, entry.stamp.mtime)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


def verify(entries: Iterable[Entry], chunks: Chunks, progress: Progress) -> list[str]:
    """Return what is wrong with the files of a catalog, one line per damaged file."""
    cache = ChunkCache(chunks)
    problems: list[str] = []
    bad: dict[bytes, str] = {}
    for number, entry in enumerate(entries):
        found = [problem for piece in entry.pieces if (problem := _problem(cache, piece, bad))]
        problems += [f"file {entry.path}: {problem}" for problem in found[:1]]
        progress.advance(number, unit="files")
    return problems


def _problem(cache: ChunkCache, piece: Piece, bad: dict[bytes, str]) -> str:
    """Return what is wrong with a piece ("": nothing); every chunk is read once."""
    if piece.chunk not in bad:
        try:
            cache.part(piece)
        except BackupDamaged as error:
            bad[piece.chunk] = error.message
    return bad.get(piece.chunk, "")
