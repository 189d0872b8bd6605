"""The partition table inside a ploop disk: a GPT with one partition from sector 2048 on.

    0 protective MBR | 1 header | 2..33 entries | 2048 partition ... | entries | last: header

Written as `ploop init` does it (lib/gpt.c): one partition of type "Linux filesystem data".  The
last sectors of the disk hold the copy, so resizing the disk means writing both anew.
Source: UEFI specification, chapter 5.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import NamedTuple

from pyvz.errors import StorageError
from pyvz.image.file import read_at, write_at

SECTOR = 512
FIRST = 2048  # first sector of the partition
_ENTRIES = 128
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_TABLE = _ENTRIES * _ENTRY.size // SECTOR  # 32 sectors
_MAGIC = b"EFI PART"
_LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
MINIMUM = (FIRST + 2048 + _TABLE + 1) * SECTOR


class Partition(NamedTuple):
    """Bytes of the disk that the partition takes, and the GUIDs that a resize keeps."""

    offset: int
    size: int
    disk_guid: bytes
    guid: bytes
    kind: bytes


def find(fd: int, start: int, size: int) -> Partition | None:
    """Return the only partition of the disk in FD, SIZE bytes from byte START on; None without GPT.

    Raises StorageError for a damaged table, and for several partitions.
    """
    header = read_at(fd, _HEADER.size, start + SECTOR)
    if not header.startswith(_MAGIC):
        return None
    values = _HEADER.unpack(header)
    length, checksum, disk_guid, at, count, each, table_sum = (
        values[2], values[3], values[9], values[10], values[11], values[12], values[13],
    )  # fmt: skip
    blank = header[:16] + bytes(4) + header[20:]
    if length != _HEADER.size or zlib.crc32(blank) != checksum:
        raise StorageError("the partition table is damaged")
    if each != _ENTRY.size or not 0 < count <= _ENTRIES or at != 2:
        raise StorageError("the partition table has an unusual layout")
    table = read_at(fd, count * each, start + at * SECTOR)
    if zlib.crc32(table) != table_sum:
        raise StorageError("the partition table is damaged")
    used = [entry for entry in _ENTRY.iter_unpack(table) if entry[0] != bytes(16)]
    if len(used) != 1:
        raise StorageError(f"the disk has {len(used)} partitions; one is supported")
    kind, guid, first, last = used[0][:4]
    if not 34 <= first <= last < size // SECTOR:
        raise StorageError("the partition is larger than the disk")
    return Partition(first * SECTOR, (last - first + 1) * SECTOR, disk_guid, guid, kind)


def write(fd: int, start: int, size: int, old: Partition | None = None) -> Partition:
    """Write a table with one partition that fills the disk; with OLD its begin and GUIDs stay.

    The caller wipes nothing: a copy of the table in the middle of a grown disk is overwritten by
    the file system that grows over it.  Raises StorageError for too small a disk.
    """
    if size < MINIMUM:
        raise StorageError(f"a disk of {size} bytes is too small for a partition table")
    first = old.offset // SECTOR if old else FIRST
    sectors = size // SECTOR
    # The partition ends at a whole MiB: file systems then use all of it.
    last = (sectors - _TABLE - 1) // 2048 * 2048 - 1
    if last <= first:
        raise StorageError("the disk is too small for its partition")
    new = Partition(
        first * SECTOR,
        (last - first + 1) * SECTOR,
        old.disk_guid if old else uuid.uuid4().bytes_le,
        old.guid if old else uuid.uuid4().bytes_le,
        old.kind if old else _LINUX,
    )
    entry = _ENTRY.pack(new.kind, new.guid, first, last, 0, b"")
    table = entry.ljust(_ENTRIES * _ENTRY.size, b"\0")
    write_at(fd, table, start + (sectors - 1 - _TABLE) * SECTOR)
    write_at(fd, _header(new, sectors, table, backup=True), start + (sectors - 1) * SECTOR)
    write_at(fd, table, start + 2 * SECTOR)
    write_at(fd, _header(new, sectors, table, backup=False), start + SECTOR)
    write_at(fd, _protective(sectors), start)
    return new


def _header(new: Partition, sectors: int, table: bytes, *, backup: bool) -> bytes:
    here, there = (sectors - 1, 1) if backup else (1, sectors - 1)
    at = sectors - 1 - _TABLE if backup else 2
    values = (
        here, there, 2 + _TABLE, sectors - _TABLE - 2, new.disk_guid, at,
        _ENTRIES, _ENTRY.size, zlib.crc32(table),
    )  # fmt: skip
    blank = _HEADER.pack(_MAGIC, 0x10000, _HEADER.size, 0, 0, *values)
    raw = _HEADER.pack(_MAGIC, 0x10000, _HEADER.size, zlib.crc32(blank), 0, *values)
    return raw.ljust(SECTOR, b"\0")


def _protective(sectors: int) -> bytes:
    entry = struct.pack("<8B2I", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
