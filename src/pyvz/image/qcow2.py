"""Reading the tables of qcow2 images: what is in one, and in which clusters two states differ.

A disk is an L1 table of L2 tables of clusters; a snapshot inside the image has an L1 table of its
own and shares what has not been written since (reference counts: a shared cluster is never written
in place, the writer gets a new one).  So a cluster at one place in both tables has one content.

QEMU writes these images; here they are only read, and nothing in a file is believed: what names
another file (backing file, external data) is refused, tables must lie in the file.  A state must
not change while it is read: a snapshot never does, the disk itself only while nobody writes.
Source: QEMU docs/interop/qcow2.txt; numbers are big endian.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import NotFound, StorageError
from pyvz.image.file import opened, read_at

MAGIC: Final = b"QFI\xfb"
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")  # up to snapshots_offset: 72 bytes
_V3: Final = struct.Struct(">QQQII")  # features: incompatible compatible autoclear; order length
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
HEADER_ROOM: Final = 4096  # of the first cluster; what `view` makes
_EXTENDED_L2: Final = 1 << 4
_INCOMPATIBLE: Final = {1: "corrupt", 2: "its data in another file"}
_KNOWN: Final = 0b11011  # dirty, corrupt, compression type, extended L2
_OFFSET: Final = 0x00FFFFFFFFFFFE00
_COPIED: Final = 1 << 63  # may be written in place: says nothing about the content
_COMPRESSED: Final = 1 << 62
_ZERO: Final = 1
_MAX_L1: Final = 1 << 22  # entries: 32 MiB, QCOW_MAX_L1_SIZE
_MAX_SNAPSHOTS: Final = 65536
_MAX_EXTRA: Final = 1024
_MAX_TABLE: Final = 64 << 20
_SUBCLUSTERS: Final = 32


class State(NamedTuple):
    """The disk at one time: its L1 table, and how large it is in bytes."""

    l1_offset: int
    l1_size: int
    size: int


class Snapshot(NamedTuple):
    """A state that is kept in the image under an id and a name."""

    id: str
    name: str
    state: State


@dataclass(frozen=True)
class Qcow2:
    """An open image; `now` is the disk itself."""

    path: Path
    fd: int
    file_size: int
    cluster: int
    extended: bool
    now: State
    snapshots: tuple[Snapshot, ...]
    header: bytes

    def state(self, name: str | None) -> State:
        """Return a snapshot by its name, or the disk as it is; raises NotFound."""
        if name is None:
            return self.now
        for each in self.snapshots:
            if each.name == name:
                return each.state
        raise NotFound(f"there is no snapshot {name}")

    def changed(self, old: State, new: State) -> list[tuple[int, int]]:
        """Return (offset, length) of what may differ, in order, within NEW; never less."""
        found: list[tuple[int, int]] = []
        per_table = self.cluster // self._width
        span = per_table * self.cluster
        first, second = self._l1(old), self._l1(new)
        for index in range(-(-new.size // span)):
            one, two = (self._l2_offset(table, index) for table in (first, second))
            if one == two:  # one table, shared: nothing was written
                continue
            before, after = self._l2(one), self._l2(two)
            for number in range(per_table):
                if before[number] == after[number]:
                    continue
                start = index * span + number * self.cluster
                end = min(start + self.cluster, new.size)
                if start >= end:
                    break
                if found and found[-1][0] + found[-1][1] == start:
                    found[-1] = (found[-1][0], end - found[-1][0])
                else:
                    found.append((start, end - start))
        return found

    def read(self, state: State, offset: int, length: int) -> bytes:
        """Return bytes of the disk, fewer at its end; raises StorageError (compressed, damaged)."""
        length = max(0, min(length, state.size - offset))
        grain = self.cluster // (_SUBCLUSTERS if self.extended else 1)
        table = self._l1(state)
        parts = []
        while length:
            inside = offset % grain
            count = min(length, grain - inside)
            at = self._place(table, offset - inside, grain)
            raw = b"" if at is None else read_at(self.fd, count, at + inside)
            parts.append(raw.ljust(count, b"\0"))
            offset += count
            length -= count
        return b"".join(parts)

    def view_header(self, state: State) -> bytes:
        """Return what at the beginning of the file would make STATE the disk, and nothing else."""
        fields = list(_HEADER.unpack_from(self.header))
        fields[5], fields[7], fields[8] = state.size, state.l1_size, state.l1_offset
        fields[11] = fields[12] = 0  # no snapshots
        raw = bytearray(self.header)
        _HEADER.pack_into(raw, 0, *fields)
        struct.pack_into(">Q", raw, 88, 0)  # no autoclear feature: no bitmaps
        return bytes(raw).ljust(HEADER_ROOM, b"\0")  # an extension of type 0 ends the header

    @property
    def _width(self) -> int:
        return 16 if self.extended else 8

    def _l1(self, state: State) -> array[int]:
        return self._table(state.l1_offset, state.l1_size)

    def _l2_offset(self, table: array[int], index: int) -> int:
        return table[index] & _OFFSET if index < len(table) else 0

    def _l2(self, offset: int) -> list[tuple[int, int]]:
        """Return (entry, bitmap) of every cluster, without the flag that is not about content."""
        if not offset:
            return [(0, 0)] * (self.cluster // self._width)
        raw = self._table(offset, self.cluster // 8)
        if self.extended:
            return [(raw[i] & ~_COPIED, raw[i + 1]) for i in range(0, len(raw), 2)]
        return [(entry & ~_COPIED, 0) for entry in raw]

    def _table(self, offset: int, entries: int) -> array[int]:
        _check_place(self.path, (offset, entries * 8), self.file_size, self.cluster)
        table = array("Q", read_at(self.fd, entries * 8, offset))
        if sys.byteorder == "little":
            table.byteswap()
        return table

    def _place(self, table: array[int], offset: int, grain: int) -> int | None:
        """Return where in the file a piece of the disk is; None: it reads as zeros."""
        index, number = divmod(offset // self.cluster, self.cluster // self._width)
        l2 = self._l2_offset(table, index)
        if not l2:
            return None
        _check_place(self.path, (l2, self.cluster), self.file_size, self.cluster)
        raw = read_at(self.fd, self._width, l2 + number * self._width)
        entry = int.from_bytes(raw[:8], "big")
        if entry & _COMPRESSED:
            raise StorageError(f"{self.path} is compressed")
        if self.extended:
            bit = offset % self.cluster // grain
            there = int.from_bytes(raw[8:], "big") >> bit & 1
        else:
            there = not entry & _ZERO
        at = entry & _OFFSET
        return at + offset % self.cluster if at and there else None


@contextlib.contextmanager
def image(path: str | Path) -> Iterator[Qcow2]:
    """Open an image for reading and check its header; raises FileMissing, StorageError."""
    with opened(path) as fd:
        yield _parse(Path(path), fd)


def require(path: str | Path) -> Qcow2:
    """Return what an image says of itself (closed again), when it can be given to QEMU."""
    with image(path) as found:
        return found


def _parse(path: Path, fd: int) -> Qcow2:
    raw = read_at(fd, 112, 0)
    if len(raw) < 104 or raw[:4] != MAGIC:
        raise StorageError(f"{path} is not a qcow2 image")
    (_, version, backing, _, bits, size, crypt, l1_size, l1_offset, _, _, count, where) = (
        _HEADER.unpack_from(raw)
    )
    file_size = os.fstat(fd).st_size
    if version != 3:
        raise StorageError(
            f"{path} is a qcow2 image of version {version}",
            hint="Bring it up to date: qemu-img amend -f qcow2 -o compat=1.1 IMAGE",
        )
    features, _, _, _, length = _V3.unpack_from(raw, 72)
    _check_header(path, (backing, crypt, features), (bits, length))
    cluster = 1 << bits
    now = _state(path, (l1_offset, l1_size, size), file_size, cluster)
    snapshots = tuple(_snapshots(path, fd, (where, count), (file_size, cluster)))
    names = [each.name for each in snapshots]
    if len(set(names)) != len(names):
        raise StorageError(f"{path} has two snapshots of one name")
    extended = bool(features & _EXTENDED_L2)
    header = raw[:length].ljust(length, b"\0")
    return Qcow2(path, fd, file_size, cluster, extended, now, snapshots, header)


def _check_header(path: Path, refused: tuple[int, int, int], sizes: tuple[int, int]) -> None:
    backing, crypt, features = refused
    bits, length = sizes
    if backing:
        raise StorageError(
            f"{path} is based on another image", hint="Make it whole: qemu-img convert -O qcow2."
        )
    if crypt:
        raise StorageError(f"{path} is encrypted", hint="Decrypt it: qemu-img convert -O qcow2.")
    for bit, what in _INCOMPATIBLE.items():
        if features >> bit & 1:
            raise StorageError(
                f"{path} cannot be used: it is marked {what}"
                if bit == 1
                else f"{path} cannot be used: it has {what}",
                hint="qemu-img check -r all IMAGE" if bit == 1 else "",
            )
    if features & ~_KNOWN:
        raise StorageError(f"{path} has features that are not known here ({features:#x})")
    if not 12 <= bits <= 21:
        raise StorageError(f"{path} has clusters of 2^{bits} bytes")
    if not 104 <= length <= 112:
        raise StorageError(f"{path} has a header of {length} bytes")


def _state(path: Path, fields: tuple[int, int, int], file_size: int, cluster: int) -> State:
    state = State(*fields)
    span = cluster * (cluster // 16)  # of one L2 table, at least
    if not 0 < state.size < 1 << 60 or state.size % 512:
        raise StorageError(f"{path} claims to have {state.size} bytes")
    if state.l1_size > _MAX_L1 or state.l1_size * span * 2 < state.size:
        raise StorageError(f"{path} has a table of {state.l1_size} entries")
    _check_place(path, (state.l1_offset, state.l1_size * 8), file_size, cluster)
    return state


def _check_place(path: Path, part: tuple[int, int], file_size: int, cluster: int) -> None:
    offset, length = part
    if offset % cluster or offset + length > file_size or (length and not offset):
        raise StorageError(f"{path} is damaged: a table at {offset} is not in the file")


def _snapshots(
    path: Path, fd: int, table: tuple[int, int], sizes: tuple[int, int]
) -> Iterator[Snapshot]:
    """Read the table of COUNT snapshots at WHERE, entry by entry."""
    at, count = table
    file_size, cluster = sizes
    if count > _MAX_SNAPSHOTS:
        raise StorageError(f"{path} claims to have {count} snapshots")
    if count:
        _check_place(path, (at, count * _SNAPSHOT.size), file_size, cluster)
    end = min(at + _MAX_TABLE, file_size)
    for _ in range(count):
        raw = read_at(fd, _SNAPSHOT.size + _MAX_EXTRA + (2 << 16), at)
        if len(raw) < _SNAPSHOT.size:
            raise StorageError(f"{path} is damaged: its snapshots are cut off")
        l1_offset, l1_size, id_size, name_size, _, _, _, _, extra = _SNAPSHOT.unpack_from(raw)
        length = _SNAPSHOT.size + extra + id_size + name_size
        # The size of the disk is the second number of the extra data, always there in version 3.
        if not 16 <= extra <= _MAX_EXTRA or at + length > end:
            raise StorageError(f"{path} is damaged: its snapshots are cut off")
        size = int.from_bytes(raw[_SNAPSHOT.size + 8 : _SNAPSHOT.size + 16], "big")
        names = raw[_SNAPSHOT.size + extra : length]
        state = _state(path, (l1_offset, l1_size, size), file_size, cluster)
        yield Snapshot(
            names[:id_size].decode("utf-8", "replace"),
            names[id_size:].decode("utf-8", "replace"),
            state,
        )
        at += -(-length // 8) * 8
