"""The checksum of a disk's content, whatever form its image has.

It is the SHA-256 of the SHA-256 of every MiB of the disk, in order, the last one filled up with
zeros.  Zeros cost nothing, so an almost empty disk of 1 TiB takes no longer than its data.  In a
shell, for a raw disk of whole MiB:

    split -b 1M --filter='sha256sum | head -c 64 | xxd -r -p' disk.raw | sha256sum
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pyvz.image.delta import Stack
from pyvz.model.task import Progress

PIECE = 1 << 20
_ZEROS = bytes(PIECE)
_ZERO_DIGEST = hashlib.sha256(_ZEROS).digest()


class Digest:
    """The checksum as it comes about: pieces in ascending order, those left out are zeros."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._next = 0

    def add(self, index: int, data: bytes) -> None:
        """Add the piece `index`; a short one is filled up with zeros."""
        self._zeros(index)
        self._hash.update(hashlib.sha256(data.ljust(PIECE, b"\0")).digest())
        self._next = index + 1

    def finish(self, size: int) -> str:
        """Return the checksum of a disk of SIZE bytes."""
        self._zeros(-(-size // PIECE))
        return self._hash.hexdigest()

    def _zeros(self, until: int) -> None:
        if until > self._next:
            self._hash.update(_ZERO_DIGEST * (until - self._next))
            self._next = until


def pieces(disk: Stack, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """Yield (index, bytes) of every MiB of a disk that is not all zeros; tells the progress."""
    after = 0
    for offset, length in disk.data():
        for index in range(max(after, offset // PIECE), -(-(offset + length) // PIECE)):
            data = disk.read(index * PIECE, PIECE)
            after = index + 1
            progress.advance(index * PIECE, disk.size)
            if data != _ZEROS[: len(data)]:
                yield index, data
    progress.advance(disk.size, disk.size)


def digest(disk: Stack, progress: Progress, *, size: int | None = None) -> str:
    """Return the checksum of a whole disk, or of one of SIZE bytes if that is all that it holds.

    Raises Cancelled.
    """
    found = Digest()
    for index, data in pieces(disk, progress):
        found.add(index, data)
    return found.finish(disk.size if size is None else size)
