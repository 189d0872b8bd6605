"""The partitions of a whole disk as its guest has made them: an MBR or a GPT.

The guest writes the tables, so nothing in them is believed: what lies outside of the disk is left
out, and every walk has an end.  (image/gpt.py is the table that we make ourselves.)
Source: UEFI specification, chapter 5; util-linux, libfdisk/src/dos.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyvz.image.file import read_at

SECTOR: Final = 512
_MBR_ENTRIES: Final = 446
_ENTRY: Final = struct.Struct("<B3xB3xII")  # of an MBR: flag, type, first sector, sectors
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE
_GPT: Final = struct.Struct("<8s64xQII")  # of its header: magic; sector, number, size of entries
_GPT_MAGIC: Final = b"EFI PART"
_GPT_ENTRY: Final = struct.Struct("<16s16sQQ")
_MOST: Final = 128


class Partition(NamedTuple):
    """Bytes of the disk that a partition takes; number: as the guest's kernel counts it."""

    number: int
    offset: int
    size: int


def listed(fd: int, size: int) -> tuple[Partition, ...]:
    """Return the partitions of a disk of SIZE bytes, none for one without a table."""
    first = read_at(fd, SECTOR, 0)
    if first[510:512] != b"\x55\xaa":
        return ()
    entries = _entries(first)
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        found = list(_gpt(fd))
    else:
        found = list(_mbr(fd, entries))
    return tuple(each for each in found if _inside(each, size))


def _inside(each: Partition, size: int) -> bool:
    return each.offset >= SECTOR and each.size > 0 and each.offset + each.size <= size


def _entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, sectors) of the four entries of an MBR."""
    found = _ENTRY.iter_unpack(sector[_MBR_ENTRIES:510])
    return [(kind, first, count) for _, kind, first, count in found]


def _mbr(fd: int, entries: list[tuple[int, int, int]]) -> Iterator[Partition]:
    for number, (kind, first, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            yield from _logical(fd, first)
        elif kind:
            yield Partition(number, first * SECTOR, count * SECTOR)


def _logical(fd: int, base: int) -> Iterator[Partition]:
    """Walk the chain of an extended partition: each link holds one, and where the next link is."""
    at = base
    for number in range(5, 5 + _MOST):
        sector = read_at(fd, SECTOR, at * SECTOR)
        if sector[510:512] != b"\x55\xaa":
            return
        (kind, first, count), (_, following, _) = _entries(sector)[:2]
        if kind:
            yield Partition(number, (at + first) * SECTOR, count * SECTOR)
        if not following:
            return
        at = base + following


def _gpt(fd: int) -> Iterator[Partition]:
    magic, at, count, each = _GPT.unpack(read_at(fd, _GPT.size, SECTOR))
    if magic != _GPT_MAGIC or not _GPT_ENTRY.size <= each <= 4096:
        return
    for index in range(min(count, _MOST)):
        raw = read_at(fd, _GPT_ENTRY.size, at * SECTOR + index * each)
        kind, _, first, last = _GPT_ENTRY.unpack(raw)
        if kind != bytes(16):
            yield Partition(index + 1, first * SECTOR, (last - first + 1) * SECTOR)
