"""Partition tables as guests make them, good and hostile."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from pyvz.image import partitions
from pyvz.image.partitions import SECTOR, Partition

SIZE = 64 << 20


@pytest.fixture
def disk() -> Iterator[int]:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def mbr(fd: int, sector: int, *entries: tuple[int, int, int]) -> None:
    """Write a table with (type, first sector, sectors)."""
    raw = b"".join(struct.pack("<B3xB3xII", 0, *each) for each in entries)
    os.pwrite(fd, raw.ljust(64, b"\0") + b"\x55\xaa", sector * SECTOR + 446)


def gpt(fd: int, *entries: tuple[int, int]) -> None:
    mbr(fd, 0, (0xEE, 1, SIZE // SECTOR - 1))
    os.pwrite(fd, struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128), SECTOR)
    for index, (first, last) in enumerate(entries):
        os.pwrite(
            fd, struct.pack("<16s16sQQ", b"k" * 16, b"g" * 16, first, last), 1024 + index * 128
        )


def test_no_table(disk: int) -> None:
    assert partitions.listed(disk, SIZE) == ()


def test_mbr_with_logical_partitions(disk: int) -> None:
    mbr(disk, 0, (0x83, 2048, 1024), (0x05, 4096, 8192))
    mbr(disk, 4096, (0x83, 64, 100), (0x05, 1024, 1024))
    mbr(disk, 4096 + 1024, (0x83, 64, 200))
    assert partitions.listed(disk, SIZE) == (
        Partition(1, 2048 * SECTOR, 1024 * SECTOR),
        Partition(5, 4160 * SECTOR, 100 * SECTOR),
        Partition(6, 5184 * SECTOR, 200 * SECTOR),
    )


def test_gpt(disk: int) -> None:
    gpt(disk, (2048, 4095), (4096, 8191))
    assert [each.number for each in partitions.listed(disk, SIZE)] == [1, 2]


def test_what_cannot_be_is_left_out(disk: int) -> None:
    mbr(disk, 0, (0x83, 0, 10), (0x83, 2048, 1 << 31), (0x05, 4096, 100))
    mbr(disk, 4096, (0, 0, 0), (0x05, 0, 10))  # a link to the sector itself, for ever
    assert partitions.listed(disk, SIZE) == ()
    mbr(disk, 4096, (0x83, 1, 10), (0x05, 1024, 10))
    mbr(disk, 4096 + 1024, (0x83, 1, 10), (0x05, 1024, 10))  # a ring
    assert len(partitions.listed(disk, SIZE)) < 200
    gpt(disk, (5000, 4000), (2048, 1 << 60))
    assert partitions.listed(disk, SIZE) == ()
