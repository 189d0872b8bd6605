"""Reading ploop images of any form: single files, and stacks of thin deltas.

A `Layer` is one open file: an image with a block table (thin or in the identity form), or a raw
one.  A `Stack` is the disk that layers make, the base first: a cluster is read from the topmost
layer that has it; one that none has reads as zeros.  A raw layer has every cluster, so it can only
be the base.

Nothing in a file is believed: every entry of a table must name a whole cluster of the file behind
the table, and no two entries may share a byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pyvz.errors import StorageError
from pyvz.image.disk import RAW, Descriptor
from pyvz.image.file import opened, read_at
from pyvz.image.header import BAT_ENTRY, CLUSTER, FLAG_CONVERTING, HEADER_SIZE, SECTOR, Header

MAX_CLUSTERS = 1 << 24  # 16 TiB in clusters of 1 MiB, the most that OpenVZ makes
MAX_LAYERS = 256  # the original documents 126


@dataclass(frozen=True)
class Layer:
    """An open image: `table` has the entries of its BAT as they are in the file; None: raw."""

    path: Path
    fd: int
    file_size: int
    size: int
    cluster: int
    header: Header | None = None
    table: array[int] | None = None

    @property
    def whole(self) -> bool:
        """Whether the disk is one piece of the file."""
        return self.table is None or (
            self.header is not None and contiguous(self.header, self.table)
        )

    def offset(self, index: int) -> int | None:
        """Return the byte of the file at which a cluster begins; None when it is not here."""
        if self.table is None or self.header is None:
            return index * self.cluster
        if index >= len(self.table) or not self.table[index]:
            return None
        return self.table[index] * self.header.unit


def read_table(fd: int, header: Header, path: str | Path) -> array[int]:
    """Return the BAT of an open image as it is; raises StorageError when it is cut off or huge."""
    if header.clusters > MAX_CLUSTERS:
        raise StorageError(f"{path} claims to have {header.clusters} clusters")
    raw = read_at(fd, header.clusters * BAT_ENTRY, HEADER_SIZE)
    if len(raw) < header.clusters * BAT_ENTRY:
        raise StorageError(f"{path} is cut off in its block table")
    table = array("I", raw)
    if sys.byteorder == "big":
        table.byteswap()
    return table


def faults(header: Header, table: array[int], file_size: int) -> list[str]:
    """Return in words what is wrong with the entries of a BAT, at most some of each kind."""
    if contiguous(header, table):
        last = (len(table) - 1) * header.cluster
        ok = table[0] * header.unit >= header.bat_end
        if ok and table[0] * header.unit + last + header.cluster <= file_size:
            return []
    found = []
    used = sorted((entry * header.unit, index) for index, entry in enumerate(table) if entry)
    outside = [(offset, index) for offset, index in used if offset + header.cluster > file_size]
    inside = [(offset, index) for offset, index in used if offset < header.bat_end]
    shared = [
        (one, two) for (at, one), (behind, two) in pairwise(used) if behind - at < header.cluster
    ]
    found += [f"cluster {index} lies at {at}, behind the end of the file" for at, index in outside]
    found += [f"cluster {index} lies at {at}, in the block table" for at, index in inside]
    found += [f"clusters {one} and {two} share the same place" for one, two in shared]
    return [*found[:20], f"and {len(found) - 20} more"] if len(found) > 20 else found


def contiguous(header: Header, table: array[int]) -> bool:
    """Whether the clusters lie in their order without a gap, as in the identity form."""
    step = header.cluster // header.unit
    end = table[0] + len(table) * step
    return table[0] != 0 and end <= 1 << 32 and table == array("I", range(table[0], end, step))


@contextlib.contextmanager
def layer(path: str | Path, *, raw: bool = False) -> Iterator[Layer]:
    """Open one image for reading and check it; raises FileMissing, StorageError."""
    with opened(path) as fd:
        file_size = os.fstat(fd).st_size
        if raw:
            if file_size == 0 or file_size % SECTOR:
                raise StorageError(f"{path} has {file_size} bytes, which is no raw disk")
            yield Layer(Path(path), fd, file_size, file_size, CLUSTER)
            return
        header = _header(fd, path)
        table = read_table(fd, header, path)
        wrong = faults(header, table, file_size)
        if wrong:
            raise StorageError(
                f"{path} is damaged: {wrong[0]}",
                details="\n".join(wrong[1:]),
                hint="See what a check says: ploop check -f -r IMAGE, qemu-img check -f parallels.",
            )
        yield Layer(Path(path), fd, file_size, header.size, header.cluster, header, table)


def _header(fd: int, path: str | Path) -> Header:
    try:
        header = Header.parse(read_at(fd, HEADER_SIZE, 0))
    except StorageError as error:
        raise StorageError(f"{path}: {error.message}", details=error.details) from error
    if header.flags & FLAG_CONVERTING:
        raise StorageError(
            f"{path} was left in the middle of a conversion between versions",
            hint="Finish it on the OpenVZ node that it comes from: ploop check -f.",
        )
    return header


class Stack:
    """A disk made of layers, the base first; all with the same size of clusters.

    size: of the topmost layer, in bytes.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        if not 0 < len(layers) <= MAX_LAYERS:
            raise StorageError(f"a disk cannot have {len(layers)} layers")
        layers = _needed(layers)
        top = layers[-1]
        # A raw base has no clusters of its own and takes those of the deltas above it.
        clusters = {each.cluster for each in layers if each.table is not None}
        if len(clusters) > 1:
            raise StorageError(f"the layers below {top.path} have clusters of different sizes")
        for upper in layers[1:]:
            if upper.table is None:
                raise StorageError(f"{upper.path} is a raw image and cannot lie on another one")
        self.layers = tuple(layers)
        self.size = top.size
        self.cluster = clusters.pop() if clusters else CLUSTER

    def data(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not known to be zeros, in ascending order."""
        for offset, length, found, at in self._runs():
            if found is None:
                continue
            for begin, end in _data_in_file(found.fd, at, at + length):
                yield offset + begin - at, end - begin

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk; fewer at its end."""
        length = max(0, min(length, self.size - offset))
        parts = []
        while length:
            index, skip = divmod(offset, self.cluster)
            count = min(length, self.cluster - skip)
            found, at = self._find(index)
            raw = read_at(found.fd, count, at + skip) if found else b""
            parts.append(raw if len(raw) == count else raw + bytes(count - len(raw)))
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _find(self, index: int) -> tuple[Layer | None, int]:
        """Return the layer that has a cluster and where; (None, 0) when none has it."""
        for each in reversed(self.layers):
            if each.table is None:
                at = index * self.cluster
                return (each, at) if at < each.file_size else (None, 0)
            offset = each.offset(index)
            if offset is not None:
                return each, offset
        return None, 0

    def _runs(self) -> Iterator[tuple[int, int, Layer | None, int]]:
        """Yield (offset, length, layer, offset in its file), adjacent clusters joined."""
        if len(self.layers) == 1 and self.layers[0].whole:
            yield 0, self.size, self.layers[0], self.layers[0].offset(0) or 0
            return
        begin, run, run_at = 0, *self._find(0)
        count = -(-self.size // self.cluster)
        for index in range(1, count + 1):
            found, at = self._find(index) if index < count else (None, -1)
            length = index * self.cluster - begin
            if index < count and found is run and (run is None or at == run_at + length):
                continue
            yield begin, min(length, self.size - begin), run, run_at
            begin, run, run_at = index * self.cluster, found, at


def _needed(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Leave out the layers that lie below a complete one (as every one of the identity form is)."""
    for number in reversed(range(len(layers))):
        table = layers[number].table
        if table is not None and 0 not in table and layers[number].size >= layers[-1].size:
            return layers[number:]
    return layers


def _data_in_file(fd: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a range of a file that are no holes (lseek(2), SEEK_DATA)."""
    while begin < end:
        try:
            begin = os.lseek(fd, begin, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                return
            raise
        if begin >= end:
            return
        hole = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
        yield begin, hole
        begin = hole


@contextlib.contextmanager
def stack(paths: Sequence[str | Path], *, raw_base: bool = False) -> Iterator[Stack]:
    """Open the images of a disk, the base first; raises FileMissing, StorageError."""
    with contextlib.ExitStack() as files:
        yield Stack(
            [
                files.enter_context(layer(path, raw=raw_base and number == 0))
                for number, path in enumerate(paths)
            ]
        )


@contextlib.contextmanager
def stack_of(directory: str | Path, d: Descriptor, guid: str | None = None) -> Iterator[Stack]:
    """Open the images of a described disk up to a shot (the top when none is named).

    Raises FileMissing, NotFound, StorageError also when the images are not as large as described.
    """
    if d.volume is not None:
        raise StorageError("a disk that is based on another volume cannot be read by itself")
    if d.key:
        raise StorageError("the disk is encrypted", hint="Decrypt it where it comes from.")
    paths = [Path(directory, image.file) for image in d.chain(guid)]
    with stack(paths, raw_base=d.mode == RAW) as found:
        if guid in (None, d.top) and abs(found.size - d.disk_size) >= max(d.blocksize, CLUSTER):
            raise StorageError(
                f"{directory}: the image has {found.size} bytes, its description says {d.disk_size}"
            )
        yield found
