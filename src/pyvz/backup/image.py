"""Disk images in a repository: an index from each piece of CHUNK bytes to the chunk that holds it.

The index is cut into pages, which are chunks themselves: a page that did not change is stored once
for all backups, and an incremental reads and writes only the pages of what changed.  Pieces that
hold only zeros have no chunk.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from pyvz.backup import chunk
from pyvz.backup.chunk import Chunks, Writer
from pyvz.backup.manifest import HOLE
from pyvz.errors import BackupDamaged, StorageError
from pyvz.linux import extents
from pyvz.linux.extents import Range
from pyvz.model.task import Progress

_DIGEST: Final = hashlib.sha256().digest_size
_ENTRIES: Final = 2048  # of a page: 64 KiB of index for 512 MiB of disk
_NONE: Final = bytes(_DIGEST)
_ZEROS: Final = bytes(chunk.SIZE)
_THREADS: Final = max(2, min(4, os.cpu_count() or 1))
_AHEAD: Final = 4 * _THREADS  # pieces under way at a time
_T = TypeVar("_T")


class Source(NamedTuple):
    """A disk: the part of an open file of SIZE bytes from OFFSET on.  It must not change."""

    fd: int
    offset: int
    size: int


class Index:
    """Piece number -> name of its chunk, or None for zeros; pages are read when needed."""

    def __init__(self, size: int, pages: Sequence[str], get: Callable[[bytes], bytes]) -> None:
        self.size = size
        self.count = -(-size // chunk.SIZE)
        self._names = list(pages)
        self._names += [HOLE] * (-(-self.count // _ENTRIES) - len(self._names))
        self._pages: dict[int, bytearray] = {}
        self._dirty: set[int] = set()
        self._get = get

    def __getitem__(self, piece: int) -> bytes | None:
        """Return the name of a piece's chunk; raises BackupDamaged."""
        page = self._page(piece // _ENTRIES)
        at = piece % _ENTRIES * _DIGEST
        found = bytes(page[at : at + _DIGEST])
        return None if found == _NONE else found

    def __setitem__(self, piece: int, digest: bytes | None) -> None:
        """Say which chunk holds a piece."""
        number = piece // _ENTRIES
        at = piece % _ENTRIES * _DIGEST
        self._page(number)[at : at + _DIGEST] = digest or _NONE
        self._dirty.add(number)

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            name = self._names[number]
            raw = self._get(bytes.fromhex(name)) if name != HOLE else b""
            if len(raw) not in {0, _ENTRIES * _DIGEST}:
                raise BackupDamaged(f"chunk {name} is no page of an image's index")
            page = self._pages[number] = bytearray(raw or bytes(_ENTRIES * _DIGEST))
        return page

    def resized(self, size: int) -> Index:
        """Return the index of the same disk with another size."""
        count = -(-size // chunk.SIZE)
        return Index(size, self._names[: -(-count // _ENTRIES)], self._get)

    def names(self) -> Iterator[bytes]:
        """Yield the names of every chunk that is needed: pages, and what they name."""
        yield from (bytes.fromhex(name) for name in self._names if name != HOLE)
        yield from (digest for _, digest in self.items())

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (piece, chunk) of all that is not zeros, in order; raises BackupDamaged."""
        for number, name in enumerate(self._names):
            if name == HOLE and number not in self._pages:
                continue
            first = number * _ENTRIES
            for piece in range(first, min(first + _ENTRIES, self.count)):
                digest = self[piece]
                if digest is not None:
                    yield piece, digest

    def store(self, writer: Writer) -> tuple[str, ...]:
        """Store the pages that changed; return the names of all."""
        for number in sorted(self._dirty):
            page = self._pages[number]
            # What lies behind the end of a disk that became smaller is nobody's.
            used = min(_ENTRIES, self.count - number * _ENTRIES) * _DIGEST
            page[used:] = bytes(len(page) - used)
            self._names[number] = writer.put(bytes(page)).hex() if any(page) else HOLE
        self._dirty.clear()
        return tuple(self._names[: -(-self.count // _ENTRIES)])


def back_up(
    source: Source,
    writer: Writer,
    progress: Progress,
    *,
    old: Index | None = None,
    changed: Iterable[Range] | None = None,
) -> tuple[str, ...]:
    """Store a disk; return the pages of its index.

    old, changed: the index of an earlier backup of the disk, and the ranges of the *file* in which
    it may differ now: nothing else is read.  Without them all data is.
    Raises BackupDamaged (index of the old one), Cancelled, OSError (ENOSPC, ...).
    """
    if old is None or changed is None:
        index = Index(source.size, (), writer.get)
        ranges = extents.data_ranges(source.fd, source.offset, source.offset + source.size)
    else:
        index = old.resized(source.size)
        ranges = iter([*changed, *_edge(old.size, source)])
    pieces = sorted(_pieces(ranges, source))
    total = sum(_length(piece, source.size) for piece in pieces)
    done = 0
    for piece, digest in ordered(pieces, lambda number: _store(source, number, writer)):
        index[piece] = digest
        done += _length(piece, source.size)
        progress.advance(done, total)
    return index.store(writer)


def restore(index: Index, fd: int, offset: int, chunks: Chunks, progress: Progress) -> None:
    """Write a disk into an empty file that has its full size, from OFFSET on; zeros stay holes.

    Raises BackupDamaged (says which bytes), Cancelled, OSError.
    """
    items = dict(index.items())
    total = sum(_length(piece, index.size) for piece in items)
    done = 0

    def bring(piece: int) -> None:
        data = _fetch(chunks, items[piece], piece, index.size)
        os.pwrite(fd, data, offset + piece * chunk.SIZE)

    for piece, _ in ordered(items, bring):
        done += _length(piece, index.size)
        progress.advance(done, total)


def verify(index: Index, chunks: Chunks, progress: Progress, seen: set[bytes]) -> list[str]:
    """Return what is wrong with a disk, one line per damaged piece; each chunk is read once."""
    problems: list[str] = []

    def check(piece: int) -> str | None:
        try:
            _fetch(chunks, items[piece], piece, index.size)
        except BackupDamaged as error:
            return error.message
        return None

    items = {piece: digest for piece, digest in index.items() if digest not in seen}
    for done, (piece, problem) in enumerate(ordered(items, check), 1):
        progress.advance(done, len(items), unit="chunks")
        if problem is None:
            seen.add(items[piece])
        else:
            problems.append(problem)
    return problems


def _fetch(chunks: Chunks, digest: bytes, piece: int, size: int) -> bytes:
    """Return a piece's content; the error says where in the disk it is."""
    length = _length(piece, size)
    try:
        return chunks.get(digest, length)
    except BackupDamaged as error:
        start = piece * chunk.SIZE
        raise BackupDamaged(f"bytes {start} to {start + length - 1}: {error.message}") from error


def _store(source: Source, piece: int, writer: Writer) -> bytes | None:
    """Store one piece; None for zeros."""
    data = _read(source, piece)
    return None if data == _ZEROS[: len(data)] else writer.put(data)


def _read(source: Source, piece: int) -> bytes:
    """Read one piece; raises StorageError when the file ends too early."""
    length = _length(piece, source.size)
    start = source.offset + piece * chunk.SIZE
    data = os.pread(source.fd, length, start)
    while len(data) < length:  # a signal, or one call that gave less
        more = os.pread(source.fd, length - len(data), start + len(data))
        if not more:
            raise StorageError(f"The image ends before its disk does (at {start + len(data)})")
        data += more
    return data


def _pieces(ranges: Iterable[Range], source: Source) -> set[int]:
    """Return the numbers of the pieces that ranges of the file touch."""
    found: set[int] = set()
    for each in ranges:
        start = max(each.start - source.offset, 0)
        end = min(each.end - source.offset, source.size)
        if start < end:
            found.update(range(start // chunk.SIZE, -(-end // chunk.SIZE)))
    return found


def _edge(old_size: int, source: Source) -> list[Range]:
    """Return, for a disk that was resized, its piece where the smaller of both ends is."""
    at = min(old_size, source.size) - 1
    return [] if old_size == source.size or at < 0 else [Range(source.offset + at, 1)]


def _length(piece: int, size: int) -> int:
    """Return the bytes of a piece: the last one of a disk may be shorter."""
    return min(chunk.SIZE, size - piece * chunk.SIZE)


def ordered(numbers: Iterable[int], work: Callable[[int], _T]) -> Iterator[tuple[int, _T]]:
    """Yield (number, work(number)) in order, some of them under way at a time in threads.

    Reading, hashing and compressing release the interpreter.  Nothing is under way any more when
    the iteration ends, in whatever way.
    """
    pending: deque[tuple[int, Future[_T]]] = deque()
    with ThreadPoolExecutor(_THREADS, "backup") as pool:
        try:
            for number in numbers:
                pending.append((number, pool.submit(work, number)))
                if len(pending) >= _AHEAD:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()
