"""The identity form of a ploop image: the raw disk at a fixed offset, behind header and BAT.

    0        64         64+4n              data                    data + n clusters
    | header | BAT[0..n) | reserve for more | cluster 0 | cluster 1 | ... |

BAT[i] = data / cluster + i: ploop's own `preallocated` mode.  A loop device at the offset
`data_offset` is the disk, with no daemon and no translation.  The data part is sparse: what was
never written, or was discarded, is a hole.  The header area is larger than today's BAT needs, so
that the disk can grow: 4 MiB hold the BAT of just under 1 TiB.

Growing writes in the order: file size, BAT, header, with an fsync between them; shrinking the
other way round.  The header lies in one sector, so a crash leaves the old disk or the new one, and
besides at most a tail of the file that nothing refers to, which the next change cuts.

The functions lock nothing: the caller holds the disk.  Sizes are in bytes; a size that is no
whole number of clusters is rounded up.  All raise FileMissing, StorageError (no regular file,
no image in this form), NoSpace, OSError.
"""

from __future__ import annotations

import os
import secrets
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pyvz.errors import StorageError, Unsupported
from pyvz.image.file import no_space, opened, read_at, write_at
from pyvz.image.header import (
    BAT_ENTRY,
    CLOSED,
    CLUSTER,
    HEADER_SIZE,
    IN_USE,
    IN_USE_AT,
    Header,
    check_cluster,
)
from pyvz.image.report import Report
from pyvz.linux.file import fsync_directory

RESERVE = 4 << 20  # header area of a new image
LARGE_RESERVE = 16 << 20  # for disks that may grow to 4 TiB
LARGE = 200 << 30  # from this size on the header has room for more than 1 TiB
_STEP = 1 << 18  # BAT entries in memory at once


def cluster_of(size: int) -> int:
    """Return the largest size of a cluster, at most the usual one, of which SIZE bytes are whole
    ones; raises StorageError."""
    cluster = min(CLUSTER, size & -size)
    check_cluster(cluster)
    return cluster


def reserve_of(size: int, cluster: int = CLUSTER) -> int:
    """Return a header area in which a new disk of SIZE bytes can grow at least fourfold."""
    usual = LARGE_RESERVE if size >= LARGE else RESERVE
    return max(usual, HEADER_SIZE + BAT_ENTRY * 4 * _clusters(size, cluster))


def capacity(reserve: int, cluster: int = CLUSTER) -> int:
    """Return to what size a disk with a header area of RESERVE bytes can grow."""
    return (reserve - HEADER_SIZE) // BAT_ENTRY * cluster


def create(
    path: str | Path, size: int, *, reserve: int | None = None, cluster: int = CLUSTER
) -> None:
    """Make an empty disk of SIZE bytes in the new file PATH; it has its name only when it is whole.

    reserve: bytes of the header area, at least; more is taken when SIZE needs it.  None: such that
    the disk can grow at least fourfold.
    Raises FileExistsError.
    """
    clusters = _clusters(size, cluster)
    reserve = reserve_of(size, cluster) if reserve is None else reserve
    data = _round_up(max(reserve, HEADER_SIZE + BAT_ENTRY * clusters), max(cluster, CLUSTER))
    header = Header(
        version=2, cluster=cluster, clusters=clusters, size=clusters * cluster, data=data
    )
    raw = header.to_bytes()
    path = Path(path)
    temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(6)}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with no_space(path):
        fd = os.open(temporary, flags, 0o600)
        try:
            os.ftruncate(fd, data + header.size)
            _write_bat(fd, header, 0)
            write_at(fd, raw, 0)
            os.fsync(fd)
            os.link(temporary, path)  # unlike rename, it replaces nothing
        finally:
            os.close(fd)
            temporary.unlink()
    fsync_directory(path.parent)


def grow(path: str | Path, size: int) -> int:
    """Make the disk SIZE bytes large and return its size; nothing happens when it is as large.

    A loop device above goes on, and sees the new size after linux.loopdevice.resize().
    Raises StorageError for less than it has, Unsupported when the BAT has no room left.
    """
    with opened(path, write=True) as fd:
        header = read_header(fd)
        clusters = _clusters(size, header.cluster)
        if clusters < header.clusters:
            raise StorageError(f"{path} has {header.size} bytes: {size} would be less")
        if clusters == header.clusters:
            return header.size
        new = replace(header, clusters=clusters, size=clusters * header.cluster)
        if new.bat_end > header.data:
            raise Unsupported(
                f"{path} cannot grow to {new.size} bytes: its block table has no room",
                details=f"It can have {capacity(header.data, header.cluster)} bytes at most.",
                hint="Copy it into an image with a larger header area: ploop convert.",
            )
        end = header.data + header.clusters * header.cluster
        # A tail that a crash has left would show old data in the new part of the disk.
        os.ftruncate(fd, end)
        os.ftruncate(fd, header.data + new.size)
        os.fsync(fd)
        _write_bat(fd, new, header.clusters)
        os.fsync(fd)
        _write_header(fd, new)
        return new.size


def shrink(path: str | Path, size: int) -> int:
    """Cut the disk to SIZE bytes and return its size; what was behind is lost.

    The file system must have been made smaller before, and no loop device may be above.
    Raises StorageError for more than it has.
    """
    with opened(path, write=True) as fd:
        header = read_header(fd)
        clusters = _clusters(size, header.cluster)
        if clusters > header.clusters:
            raise StorageError(f"{path} has {header.size} bytes: {size} would be more")
        if clusters < header.clusters:
            header = replace(header, clusters=clusters, size=clusters * header.cluster)
            _write_header(fd, header)
            os.ftruncate(fd, header.data + header.size)
            os.fsync(fd)
        return header.size


def data_offset(path: str | Path) -> int:
    """Return the byte of the file at which the disk begins; raises StorageError unless every
    entry of the block table is as it must be."""
    with opened(path) as fd:
        return require(fd, path).data


def size(path: str | Path) -> int:
    """Return the size of the disk in bytes."""
    with opened(path) as fd:
        return read_header(fd).size


def is_identity(path: str | Path) -> bool:
    """Whether it is a ploop image in this form; False for a thin one.  StorageError for others."""
    with opened(path) as fd:
        header = read_header(fd)
        return _aligned(header) and first_difference(fd, header) is None


def set_in_use(path: str | Path) -> None:
    """Mark the image as open: until `clear_in_use` it counts as not closed cleanly."""
    _set_word(path, IN_USE)


def clear_in_use(path: str | Path) -> None:
    """Mark the image as closed cleanly."""
    _set_word(path, CLOSED)


def in_use(path: str | Path) -> bool:
    """Whether the image is open, or was not closed cleanly."""
    with opened(path) as fd:
        return read_header(fd).is_in_use


def check(path: str | Path, *, repair: bool = False) -> Report:
    """Check header, block table and file size; with `repair` put right what can be.

    Only for images that nobody has open.  A wrong block table is never repaired: the image may be a
    thin one, whose data this would mix up.  Raises StorageError only when the file is no image
    at all.
    """
    with opened(path, write=repair) as fd:
        header = read_header(fd)
        errors: list[str] = []
        leaks: list[str] = []
        repaired: list[str] = []
        wrong = _wrong_table(fd, header)
        if wrong:
            return Report(errors=(wrong,), in_use=header.is_in_use)
        end = header.data + header.clusters * header.cluster
        have = os.fstat(fd).st_size
        if have < end:
            text = f"the file is cut off: {end - have} bytes are missing at its end"
            (repaired if repair else errors).append(text)
        elif have > end:
            text = f"{have - end} bytes behind the end of the disk belong to nothing"
            (repaired if repair else leaks).append(text)
        if repair and have != end:
            os.ftruncate(fd, end)
            os.fsync(fd)
        if repair and header.is_in_use:
            repaired.append("it was not closed cleanly")
            _write_header(fd, replace(header, in_use=CLOSED))
        return Report(tuple(errors), tuple(leaks), tuple(repaired), in_use=header.is_in_use)


def read_header(fd: int) -> Header:
    """Return the header of an open image; raises StorageError."""
    return Header.parse(read_at(fd, HEADER_SIZE, 0))


def require(fd: int, path: str | Path) -> Header:
    """Return the header of an open image in this form; raises StorageError for any other and for
    one whose file is cut off."""
    header = read_header(fd)
    wrong = _wrong_table(fd, header)
    if wrong:
        raise StorageError(
            f"{path} is not in the identity form",
            details=wrong,
            hint="Import a thin image: ploop convert -f preallocated DiskDescriptor.xml. "
            "To run a container's where it lies: prlctl convert CT --layout qcow2.",
        )
    missing = header.data + header.clusters * header.cluster - os.fstat(fd).st_size
    if missing > 0:
        raise StorageError(
            f"{path} is cut off: {missing} bytes are missing at its end",
            hint="Restore it from a backup; ploop check -f fills the end with zeros.",
        )
    return header


def first_difference(fd: int, header: Header) -> tuple[int, int] | None:
    """Return (index, value) of the first BAT entry that is not the identity's, or None."""
    for index, expected in _tables(header, 0):
        found = read_at(fd, len(expected), HEADER_SIZE + BAT_ENTRY * index)
        if found == expected:
            continue
        for number in range(0, len(expected), BAT_ENTRY):
            raw = found[number : number + BAT_ENTRY]
            if raw != expected[number : number + BAT_ENTRY]:
                value = struct.unpack("<I", raw)[0] if len(raw) == BAT_ENTRY else 0
                return index + number // BAT_ENTRY, value
    return None


def _wrong_table(fd: int, header: Header) -> str:
    if not _aligned(header):
        return "the data do not begin at a whole cluster"
    difference = first_difference(fd, header)
    if difference is None:
        return ""
    index, value = difference
    return f"entry {index} of the block table is {value}, not {_entry(header, index)}"


def _aligned(header: Header) -> bool:
    # A loop device needs the disk at a page of the file, and direct I/O at a block.
    return header.data % min(header.cluster, CLUSTER) == 0


def _entry(header: Header, index: int) -> int:
    return (header.data + index * header.cluster) // header.unit


def _tables(header: Header, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (index, bytes) of the identity's BAT from entry `first` on."""
    step = header.cluster // header.unit
    for index in range(first, header.clusters, _STEP):
        count = min(_STEP, header.clusters - index)
        start = _entry(header, index)
        if start + (count - 1) * step > 0xFFFFFFFF:
            raise StorageError("the image is too large for its block table")
        entries = array("I", range(start, start + count * step, step))
        if sys.byteorder == "big":
            entries.byteswap()
        yield index, entries.tobytes()


def _write_bat(fd: int, header: Header, first: int) -> None:
    for index, raw in _tables(header, first):
        write_at(fd, raw, HEADER_SIZE + BAT_ENTRY * index)


def _write_header(fd: int, header: Header) -> None:
    write_at(fd, header.to_bytes(), 0)
    os.fsync(fd)


def _set_word(path: str | Path, word: int) -> None:
    with opened(path, write=True) as fd:
        if read_header(fd).in_use != word:
            write_at(fd, struct.pack("<I", word), IN_USE_AT)
            os.fsync(fd)


def _clusters(size: int, cluster: int = CLUSTER) -> int:
    if size <= 0:
        raise StorageError(f"a disk cannot have {size} bytes")
    return -(-size // cluster)


def _round_up(number: int, to: int) -> int:
    return -(-number // to) * to
