"""The header of a ploop image: 64 bytes, little endian, in front of the block table (BAT).

    byte  0  signature (16)             v1 "WithoutFreeSpace", v2 "WithouFreSpacExt"
         16  type = 2                   20  heads         24  cylinders
         28  cluster, in sectors        32  clusters of the virtual disk
         36  size in sectors            v1: u32 and 4 unused bytes; v2: u64
         44  in use (see IN_USE)        48  first data sector (0: right behind the BAT)
         52  flags                      56  byte offset of the format extension, 0: none
         64  BAT: u32 per cluster       0: not allocated; v1: sector, v2: cluster in the file

Sizes and offsets of a `Header` are in bytes.  Source: ploop include/ploop1_image.h, QEMU
docs/interop/parallels.txt.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyvz.errors import StorageError

SECTOR = 512
HEADER_SIZE = 64
BAT_ENTRY = 4
CLUSTER = 1 << 20  # what every tool makes; stored in the header
MIN_CLUSTER = 32 << 10  # both: lib/util.c, is_valid_blocksize()
MAX_CLUSTER = 64 << 20
IN_USE = 0x746F6E59  # open, or not closed cleanly
CLOSED = 0  # closed by software of version 2.0; what QEMU writes
CLOSED_V21 = 0x312E3276  # "v2.1"
IN_USE_AT = 44

SIGNATURES = {b"WithoutFreeSpace": 1, b"WithouFreSpacExt": 2}
_SIGNATURE = {version: text for text, version in SIGNATURES.items()}
_TYPE = 2
_LAYOUT = struct.Struct("<16sIIIIIQIIIQ")
_U32 = 0xFFFFFFFF
FLAG_EMPTY = 1
FLAG_CONVERTING = 2  # the original was stopped while it rewrote v1 as v2


@dataclass(frozen=True, slots=True)
class Header:
    """The header as values; sizes and offsets in bytes.

    clusters: entries of the BAT.  size: of the virtual disk.  data: where the first cluster may
    lie, the end of the header area.  in_use: the raw word.  extension: offset of the format
    extension, 0 without.
    """

    version: int
    cluster: int
    clusters: int
    size: int
    data: int
    in_use: int = CLOSED
    flags: int = 0
    extension: int = 0

    @classmethod
    def parse(cls, raw: bytes) -> Header:
        """Return the header in the first 64 bytes of RAW; raises StorageError naming the field."""
        if len(raw) < HEADER_SIZE:
            raise StorageError(f"the ploop header is cut off after {len(raw)} bytes")
        fields = _LAYOUT.unpack_from(raw)
        signature, kind, _heads, _cylinders, sectors, clusters, total, in_use, first = fields[:9]
        version = SIGNATURES.get(signature)
        if version is None:
            raise StorageError("it is not a ploop image: the signature is unknown")
        if kind != _TYPE:
            raise StorageError(f"the ploop header is of type {kind}, not {_TYPE}")
        check_cluster(sectors * SECTOR)
        if version == 1:
            total &= _U32
        header = cls(
            version=version,
            cluster=sectors * SECTOR,
            clusters=clusters,
            size=total * SECTOR,
            data=first * SECTOR,
            in_use=in_use,
            flags=fields[9],
            extension=fields[10],
        )
        return header.checked()

    def checked(self) -> Header:
        """Return the header, made whole, when its numbers fit together; raises StorageError."""
        if self.clusters == 0 or self.size == 0:
            raise StorageError("the ploop header describes a disk of no size")
        if not 0 <= self.clusters * self.cluster - self.size < self.cluster:
            raise StorageError(
                f"the ploop header does not fit together: {self.size} bytes are not "
                f"{self.clusters} clusters of {self.cluster} bytes"
            )
        data = self.data or _aligned(self.bat_end, SECTOR)
        if data < self.bat_end:
            raise StorageError("the ploop header is wrong: the data would lie in the block table")
        if self.version == 2 and data % self.cluster:
            # An entry counts clusters from the start of the file.
            data = _aligned(data, self.cluster)
        if self.extension % SECTOR:
            raise StorageError("the ploop header is wrong: its extension is not at a sector")
        return Header(
            self.version, self.cluster, self.clusters, self.size, data,
            self.in_use, self.flags, self.extension,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """Return the 64 bytes; raises StorageError for what the version cannot hold."""
        if self.version not in _SIGNATURE:
            raise StorageError(f"there is no version {self.version} of the ploop format")
        sectors = self.size // SECTOR
        if max(self.clusters, self.data // SECTOR) > _U32 or (self.version == 1 and sectors > _U32):
            raise StorageError(f"{self.size} bytes are too many for ploop version {self.version}")
        heads, cylinders, _ = geometry(sectors)
        return _LAYOUT.pack(
            _SIGNATURE[self.version], _TYPE, heads, cylinders & _U32, self.cluster // SECTOR,
            self.clusters, sectors, self.in_use, self.data // SECTOR, self.flags, self.extension,
        )  # fmt: skip

    @property
    def bat_end(self) -> int:
        """The byte behind the last entry of the BAT."""
        return HEADER_SIZE + BAT_ENTRY * self.clusters

    @property
    def unit(self) -> int:
        """The bytes that 1 in a BAT entry stands for."""
        return SECTOR if self.version == 1 else self.cluster

    @property
    def is_in_use(self) -> bool:
        """Whether it is open, or was not closed cleanly."""
        return self.in_use == IN_USE


def check_cluster(size: int) -> None:
    """Raise StorageError unless SIZE bytes can be the size of a cluster."""
    if not MIN_CLUSTER <= size <= MAX_CLUSTER or size & (size - 1):
        raise StorageError(
            f"a ploop cluster cannot have {size} bytes",
            details=f"It is a power of two from {MIN_CLUSTER} to {MAX_CLUSTER}.",
        )


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return (heads, cylinders, sectors per track) of a disk, as ploop's ConvertToCHS counts."""
    if 1032192 < sectors < 16777216:
        return 16, sectors // (63 * 16), 63
    track = next((each for each in (63, 32, 16, 8) if sectors % each == 0), 0)
    if track:
        heads = next((each for each in (16, 8, 4, 2) if sectors // track % each == 0), 0)
        if heads:
            return heads, sectors // track // heads, track
    return 1, sectors, 1


def _aligned(number: int, to: int) -> int:
    return -(-number // to) * to
