"""Partition tables in disks: GPT, read only as far as our disks need it (UEFI 2.10, chapter 5).

Disks of OpenVZ 7 have a GPT with one partition from sector 2048 on; those we make have none.
Nothing in a table is trusted: checksums, bounds and counts are looked at.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import StorageError

SECTOR: Final = 512
_SIGNATURE: Final = b"EFI PART"
# signature revision size crc reserved, my_lba alternate first_usable last_usable, guid,
# entries_lba count entry_size entries_crc
_HEADER: Final = struct.Struct("<8s4I4Q16sQ3I")
_ENTRY: Final = struct.Struct("<16s16s3Q72s")
_MAX_ENTRIES: Final = 1024
_EMPTY: Final = bytes(16)


class Partition(NamedTuple):
    """One partition: where it lies on the disk, in bytes."""

    offset: int
    size: int


def first(path: Path, offset: int, size: int) -> Partition | None:
    """Return the first partition of the disk of `size` bytes at `offset` of a file.

    None when the disk has no partition table.  Raises StorageError when it has a broken one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        head = os.pread(fd, SECTOR, offset + SECTOR)
        if not head.startswith(_SIGNATURE):
            return None
        fields = _checked_header(head, size)
        entries_lba, count, entry_size, crc = fields[10:14]
        table = os.pread(fd, count * entry_size, offset + entries_lba * SECTOR)
    finally:
        os.close(fd)
    if zlib.crc32(table) != crc:
        raise StorageError(f"The partition table of {path} is damaged: wrong checksum")
    return _first_of(table, entry_size, size)


def _checked_header(head: bytes, size: int) -> tuple[int, ...]:
    fields = _HEADER.unpack_from(head)
    length, crc = fields[2], fields[3]
    if not _HEADER.size <= length <= SECTOR:
        raise StorageError("The partition table is damaged: its header has a wrong size")
    if zlib.crc32(head[:16] + bytes(4) + head[20:length]) != crc:
        raise StorageError("The partition table is damaged: wrong checksum of its header")
    entries_lba, count, entry_size = fields[10:13]
    if not 0 < count <= _MAX_ENTRIES or not _ENTRY.size <= entry_size <= SECTOR:
        raise StorageError(f"The partition table is damaged: {count} entries of {entry_size}")
    if (entries_lba * SECTOR) + count * entry_size > size:
        raise StorageError("The partition table is damaged: it does not lie on the disk")
    return fields


def _first_of(table: bytes, entry_size: int, size: int) -> Partition:
    for at in range(0, len(table) - _ENTRY.size + 1, entry_size):
        kind, _guid, start, last, _flags, _name = _ENTRY.unpack_from(table, at)
        if kind == _EMPTY:
            continue
        begin, end = start * SECTOR, (last + 1) * SECTOR
        if not 0 < begin < end <= size:
            raise StorageError("The partition table is damaged: a partition lies off the disk")
        return Partition(begin, end - begin)
    raise StorageError("The partition table has no partition")
