"""A tree of files into a repository: the form of containers whose disk is a directory.

A file that has the same inode, size and times as in the earlier catalog is not read again.  Large
files are stored in chunks of their own; small ones are packed together, in the order of the
walk, and a pack ends where a path hashes to a certain value: so two trees with the same files
share packs although they differ in some.

The tree may be one in which a running container works, so nothing is trusted to stay what it was:
every step is relative to an open directory, links are never followed, and mounts never entered.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from pyvz.backup import chunk
from pyvz.backup.catalog import Entry, Piece, Stamp
from pyvz.backup.chunk import Writer
from pyvz.errors import StorageError
from pyvz.linux import extents, syscall, xattr
from pyvz.model.task import Progress

Known = Mapping[str, Entry]

_CUT: Final = 64  # one path of so many ends a pack
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_XDEV | syscall.RESOLVE_BENEATH
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_XATTR_LIMIT: Final = 1 << 20
_FRESH: Final = 2 * 10**9  # ns; see `_is_known`


class _Pack:
    """Collects the content of small files into chunks."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._parts: list[tuple[Entry, int, bytes]] = []  # file, offset in it, content
        self._size = 0

    def add(self, entry: Entry, offset: int, data: bytes) -> None:
        """Take a part of a file; its place is noted in the entry when the pack is written."""
        if self._size + len(data) > chunk.SIZE:
            self.write()
        self._parts.append((entry, offset, data))
        self._size += len(data)

    def write(self) -> None:
        """Store what was collected."""
        if not self._parts:
            return
        digest = self._writer.put(b"".join(data for _, _, data in self._parts))
        at = 0
        for entry, offset, data in self._parts:
            entry.pieces.append(Piece(offset, len(data), digest, at))
            at += len(data)
        self._parts, self._size = [], 0


class Walk:
    """One pass over a tree.  known: catalog of an earlier pass or backup, by path.

    since: (wall clock, ns) when the earlier pass of *this* backup began, 0 for an earlier backup.
    """

    def __init__(
        self, root: int, writer: Writer, progress: Progress, known: Known, *, since: int = 0
    ) -> None:
        self._root = root
        self._writer = writer
        self._progress = progress
        self._known = known
        self._since = since
        self._pack = _Pack(writer)
        self._links: dict[int, str] = {}
        self._device = os.fstat(root).st_dev
        self.size = 0  # bytes of all files
        self.read = 0  # bytes that were read
        self.files = 0

    def run(self) -> list[Entry]:
        """Return the catalog; everything in it is stored (not flushed) then.

        Raises StorageError (a path that is too long), Cancelled, OSError.
        """
        entries = [self._entry(self._root, ".", os.fstat(self._root))]
        waiting = ["."]
        while waiting:
            path = waiting.pop()
            directories: list[str] = []
            for entry in self._directory(path):
                entries.append(entry)
                if stat.S_ISDIR(entry.mode):
                    directories.append(entry.path)
            waiting += reversed(directories)
        self._pack.write()
        return entries

    def _directory(self, path: str) -> Iterator[Entry]:
        """Yield what is in a directory; one that is gone meanwhile is empty."""
        try:
            fd = syscall.openat2(self._root, path, _DIRECTORY, 0, _RESOLVE)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"{path[:200]} cannot be read: {error.strerror}") from error
        try:
            for name in _names(fd):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if status.st_dev != self._device or stat.S_ISSOCK(status.st_mode):
                        continue  # something mounted; a socket is nothing without its listener
                    yield self._entry(fd, name if path == "." else f"{path}/{name}", status)
        finally:
            os.close(fd)

    def _entry(self, directory: int, path: str, status: os.stat_result) -> Entry:
        """Return the entry of a file, its content stored."""
        name = path.rpartition("/")[2]
        entry = Entry(
            path, status.st_mode, status.st_uid, status.st_gid, _stamp(status),
            rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        )  # fmt: skip
        if stat.S_ISLNK(status.st_mode):
            entry.link = os.readlink(name, dir_fd=directory)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            entry.same = self._links.setdefault(status.st_ino, path)
            if entry.same != path:
                return entry
            entry.same = ""
        entry.xattrs = _xattrs(directory, name if path != "." else ".")
        if stat.S_ISREG(status.st_mode):
            self._content(directory, name, entry)
        self.files += 1
        if self.files % 64 == 0:
            self._progress.advance(self.files, unit="files")
        return entry

    def _content(self, directory: int, name: str, entry: Entry) -> None:
        self.size += entry.stamp.size
        known = self._known.get(entry.path)
        if known is not None and self._is_known(known, entry):
            entry.pieces = known.pieces
            return
        fd = os.open(name, _FILE, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_ino != entry.stamp.inode:
                raise FileNotFoundError(name)  # replaced just now: the next pass sees it
            for part in extents.data_ranges(fd, 0, entry.stamp.size):
                self._part(fd, part, entry)
        finally:
            os.close(fd)
        if zlib.crc32(entry.path.encode("utf-8", "surrogateescape")) % _CUT == 0:
            self._pack.write()

    def _part(self, fd: int, part: extents.Range, entry: Entry) -> None:
        """Store a range of a file: whole chunks by themselves, what is smaller packed."""
        position = part.start
        while position < part.end:
            # Cut at multiples of a chunk in the file: an insertion elsewhere changes nothing here.
            length = min(chunk.SIZE - position % chunk.SIZE, part.end - position)
            data = os.pread(fd, length, position)
            if not data:
                break  # it became shorter just now: the next pass sees it
            if len(data) == chunk.SIZE:
                entry.pieces.append(Piece(position, len(data), self._writer.put(data), 0))
            else:
                self._pack.add(entry, position, data)
            position += len(data)
            self.read += len(data)
            self._progress.check()

    def _is_known(self, known: Entry, entry: Entry) -> bool:
        """Whether the content is that of the earlier entry.

        The kernel's clock of files moves in steps of some milliseconds: a file that was written
        just before it was read may have been written again within the same step, and is read
        once more.
        """
        if not known.is_file or known.stamp != entry.stamp:
            return False
        return not self._since or entry.stamp.ctime < self._since - _FRESH


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _xattrs(directory: int, name: str) -> dict[str, bytes]:
    """Return the extended attributes of a file, ACLs and capabilities among them."""
    path = f"/proc/self/fd/{directory}/{name}"
    try:
        names = xattr.names(path)
    except OSError:  # a file system without them
        return {}
    found = {}
    for attribute in names:
        with suppress(OSError):
            found[attribute] = os.getxattr(path, attribute, follow_symlinks=False)
    if sum(len(name) + len(value) for name, value in found.items()) > _XATTR_LIMIT:
        raise StorageError(f"{name} has more than {_XATTR_LIMIT} bytes of extended attributes")
    return found
