"""Disks from one form into another: thin or stacked, identity, raw.

A conversion writes beside the target and gives it its name only when it is whole and read back
with the same checksum (image/digest.py), so a failure or a cancellation leaves nothing.  Zeros
are not written.  All raise AlreadyExists (the target is there), NoSpace, StorageError, Cancelled.
"""

from __future__ import annotations

import os
import secrets
import sys
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyvz.errors import AlreadyExists, StorageError
from pyvz.image import identity
from pyvz.image.delta import Stack, layer
from pyvz.image.digest import PIECE, Digest, digest, pieces
from pyvz.image.file import no_space, write_at
from pyvz.image.header import BAT_ENTRY, CLUSTER, HEADER_SIZE, Header, check_cluster
from pyvz.linux.file import fsync_directory
from pyvz.model.task import Progress


def to_identity(
    source: Stack,
    target: str | Path,
    progress: Progress,
    *,
    size: int | None = None,
    reserve: int | None = None,
) -> str:
    """Copy a disk into a new image in the identity form; return the checksum of its content.

    size: of the new disk, at least the source's; reserve: see image/identity.py.
    """

    def write(temporary: Path) -> str:
        identity.create(temporary, max(size or 0, source.size), reserve=reserve)
        return _copy(source, temporary, progress, offset=identity.data_offset(temporary))

    return _produced(source, target, progress, write)


def to_raw(source: Stack, target: str | Path, progress: Progress) -> str:
    """Copy a disk into a new raw file; return the checksum of its content."""

    def write(temporary: Path) -> str:
        with temporary.open("xb") as file:
            file.truncate(source.size)
        return _copy(source, temporary, progress, offset=0)

    return _produced(source, target, progress, write, raw=True)


def to_thin(
    source: Stack,
    target: str | Path,
    progress: Progress,
    *,
    version: int = 2,
    cluster: int = CLUSTER,
) -> str:
    """Copy a disk into a new thin ploop image, as OpenVZ makes it; return its checksum.

    version: 1 (OpenVZ 6, up to 2 TiB) or 2.  cluster: bytes, a power of two.
    """
    check_cluster(cluster)
    header = thin_header(source.size, version=version, cluster=cluster)

    def write(temporary: Path) -> str:
        with temporary.open("xb") as file:
            return _write_thin(source, file.fileno(), header, progress)

    return _produced(source, target, progress, write)


def thin_header(size: int, *, version: int = 2, cluster: int = CLUSTER) -> Header:
    """Return the header of an empty thin image; raises StorageError for what does not fit."""
    clusters = -(-size // cluster)
    header = Header(version, cluster, clusters, clusters * cluster, 0)
    header = replace(header, data=-(-header.bat_end // cluster) * cluster)
    header.to_bytes()
    return header


def _write_thin(source: Stack, fd: int, header: Header, progress: Progress) -> str:
    found = Digest()
    table = array("I", bytes(BAT_ENTRY * header.clusters))
    end = header.data
    for index, piece in pieces(source, progress):
        found.add(index, piece)
        end = _place(fd, header, table, (index * PIECE, piece), end)
    os.ftruncate(fd, end)
    os.fsync(fd)
    if sys.byteorder == "big":
        table.byteswap()
    write_at(fd, table.tobytes(), HEADER_SIZE)
    write_at(fd, header.to_bytes(), 0)
    _settled(fd)
    return found.finish(source.size)


def _place(fd: int, header: Header, table: array[int], piece: tuple[int, bytes], end: int) -> int:
    """Write a piece (offset, bytes) into its clusters, new ones at END; return the new end."""
    offset, data = piece
    view = memoryview(data)
    while view:
        index, skip = divmod(offset, header.cluster)
        part = view[: header.cluster - skip]
        if not table[index]:
            table[index] = end // header.unit
            end += header.cluster
        write_at(fd, part, table[index] * header.unit + skip)
        view = view[len(part) :]
        offset += len(part)
    return end


def _copy(source: Stack, target: Path, progress: Progress, *, offset: int) -> str:
    found = Digest()
    fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for index, data in pieces(source, progress):
            found.add(index, data)
            write_at(fd, data, offset + index * PIECE)
        _settled(fd)
    finally:
        os.close(fd)
    return found.finish(source.size)


def _settled(fd: int) -> None:
    """Wait for the disk, and drop the cached pages: what is read back comes from the disk."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _produced(
    source: Stack,
    target: str | Path,
    progress: Progress,
    write: Callable[[Path], str],
    *,
    raw: bool = False,
) -> str:
    """Let WRITE make a file, read it back, and give it the name TARGET; return the checksum."""
    target = Path(target)
    _absent(target)
    temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(6)}"
    try:
        with no_space(target):
            progress.stage(f"Copying {source.layers[-1].path.name}")
            expected = write(temporary)
        progress.stage(f"Verifying {target.name}")
        with layer(temporary, raw=raw) as written:
            found = digest(Stack([written]), progress, size=source.size)
        if found != expected:
            raise StorageError(
                f"{target} does not read back as it was written",
                details=f"The checksum is {found}, not {expected}.",
                hint="Look for errors of the disk below: dmesg.",
            )
        try:
            os.link(temporary, target)  # unlike rename, it replaces nothing
        except FileExistsError:
            _absent(target)
            raise
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(target.parent)
    return expected


def _absent(target: Path) -> None:
    if os.path.lexists(target):
        raise AlreadyExists(f"there is a file {target} already")
