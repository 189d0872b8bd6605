"""Chunks: pieces of data named by their SHA-256, each stored once and compressed with zstd.

    <repository>/chunks/ab/abcd...           one zstd frame; its content has the hash abcd...
    <repository>/chunks/ab/abcd....damaged   found wrong by `verify`: the next backup stores it anew
    <repository>/temporary/<token>/          chunks of a writer that are not durable yet

A chunk gets its name only when its content is on the disk (one syncfs for a batch of chunks, then
the renames): a chunk that has its name is whole, also after a power cut.  Writers need no lock
against each other, as the same name means the same content.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zstandard

from pyvz.errors import BackupDamaged
from pyvz.linux import file

SIZE: Final = 256 << 10  # bytes of a chunk before compression
LIMIT: Final = 8 << 20  # no chunk is larger (the catalog entry of a file with huge attributes)
_BATCH: Final = 1024  # chunks that become durable together
_LEVEL: Final = 3
_NAME: Final = re.compile(r"[0-9a-f]{64}")
DAMAGED: Final = ".damaged"
_local = threading.local()  # the library's objects belong to one thread each


def digest_of(data: bytes | memoryview) -> bytes:
    """Return the name of the chunk with that content."""
    return hashlib.sha256(data).digest()


class Chunks:
    """The chunks of a repository, for reading and counting."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.path = repository / "chunks"
        self.temporary = repository / "temporary"

    def place(self, digest: bytes) -> Path:
        """Return where the chunk is, or would be."""
        name = digest.hex()
        return self.path / name[:2] / name

    def has(self, digest: bytes) -> bool:
        """Whether the chunk is there."""
        return self.place(digest).exists()

    def get(self, digest: bytes, length: int | None = None) -> bytes:
        """Return the content, checked; raises BackupDamaged (missing, wrong), OSError.

        length: how long it has to be.
        """
        data = unpacked(digest, self.raw(digest))
        checked_length(digest, data, length)
        return data

    def raw(self, digest: bytes) -> bytes:
        """Return the frame as it is stored, unchecked; raises BackupDamaged (missing), OSError."""
        try:
            return self.place(digest).read_bytes()
        except FileNotFoundError as error:
            raise BackupDamaged(f"chunk {digest.hex()} is missing") from error

    def names(self) -> Iterator[bytes]:
        """Yield the names of all chunks."""
        for directory in sorted(self.path.iterdir()):
            for entry in os.scandir(directory):
                if _NAME.fullmatch(entry.name):
                    yield bytes.fromhex(entry.name)

    def remove(self, digest: bytes) -> int:
        """Remove a chunk; return its size on disk."""
        place = self.place(digest)
        try:
            size = place.stat().st_size
            place.unlink()
        except FileNotFoundError:
            return 0
        return size

    def make_directories(self) -> None:
        """Make the directories of an empty store."""
        self.temporary.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        for number in range(256):
            (self.path / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)

    def sweep(self) -> None:
        """Remove what killed writers left; the caller has the repository for itself."""
        for directory in self.temporary.iterdir():
            file.remove_tree(directory)


class Audit(Chunks):
    """Chunks as `verify` reads them: a damaged one loses its name, so that it is stored anew.

    Every reader of chunks takes it in place of Chunks, so no way to a chunk can forget that.
    """

    def get(self, digest: bytes, length: int | None = None) -> bytes:
        """Return the content as Chunks.get; what is damaged is set aside first."""
        try:
            data = super().get(digest)
        except BackupDamaged:
            place = self.place(digest)
            with contextlib.suppress(FileNotFoundError):
                place.rename(place.with_name(place.name + DAMAGED))
            raise
        checked_length(digest, data, length)  # a wrong index; the chunk is another's, and whole
        return data


class Writer:
    """Adds chunks; used as a context manager, from any number of threads.

    What was not flushed when the block ends is dropped: after an error nothing is left of it but
    chunks that nobody refers to, which the next collection takes.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._directory = chunks.temporary / secrets.token_hex(8)
        self._pending: dict[bytes, Path] = {}
        self._lock = threading.Lock()
        self.stored = 0  # bytes on disk of the chunks that were new
        self.new = 0  # number of them

    def __enter__(self) -> Writer:
        """Make the temporary directory."""
        self._directory.mkdir(mode=0o700)
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was not flushed."""
        file.remove_tree(self._directory)

    def get(self, digest: bytes) -> bytes:
        """Return a chunk that an earlier backup stored; see Chunks.get."""
        return self._chunks.get(digest)

    def put(self, data: bytes | memoryview) -> bytes:
        """Store DATA (LIMIT bytes at most) and return its name; raises OSError (ENOSPC)."""
        digest = digest_of(data)
        with self._lock:
            if digest in self._pending:
                return digest
        if self._chunks.has(digest):
            return digest
        self.put_frame(digest, packed(data))
        return digest

    def put_frame(self, digest: bytes, frame: bytes) -> None:
        """Store a chunk that is packed already, and of which the caller knows that it is right."""
        with self._lock:
            if digest in self._pending:
                return
        path = self._directory / f"{digest.hex()}.{threading.get_ident()}"
        path.write_bytes(frame)
        with self._lock:
            self._pending[digest] = path
            self.stored += len(frame)
            self.new += 1
            full = len(self._pending) >= _BATCH
        if full:
            self._name()

    def flush(self) -> None:
        """Make every chunk given so far durable, with its name."""
        self._name()
        if self.new:
            file.syncfs(self._directory)

    def _name(self) -> None:
        """Write out what is pending, then give it its names."""
        with self._lock:
            if not self._pending:
                return
            file.syncfs(self._directory)
            for digest, path in self._pending.items():
                path.rename(self._chunks.place(digest))
            self._pending.clear()


def packed(data: bytes | memoryview) -> bytes:
    """Return a chunk's content as it is stored."""
    return _compressor().compress(data)


def unpacked(digest: bytes, frame: bytes) -> bytes:
    """Return the content of the chunk `digest`, checked; raises BackupDamaged."""
    try:
        # The frame's own word on its size is believed by the library, so it is asked first.
        if not 0 <= zstandard.frame_content_size(frame) <= LIMIT:
            raise BackupDamaged(f"chunk {digest.hex()} is damaged (its size is impossible)")
        data = _decompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise BackupDamaged(f"chunk {digest.hex()} is damaged ({error})") from error
    if digest_of(data) != digest:
        raise BackupDamaged(f"chunk {digest.hex()} is damaged (its content is another)")
    return data


def checked_length(digest: bytes, data: bytes, length: int | None) -> None:
    """Raise BackupDamaged when a chunk is not as long as whoever refers to it says."""
    if length is not None and len(data) != length:
        raise BackupDamaged(f"chunk {digest.hex()} has {len(data)} bytes in place of {length}")


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    made: zstandard.ZstdCompressor = _local.compressor
    return made


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    made: zstandard.ZstdDecompressor = _local.decompressor
    return made
