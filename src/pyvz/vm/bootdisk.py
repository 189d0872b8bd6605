"""A disk that boots by the BIOS, made from a tree: MBR, GRUB's core behind it, one ext4 partition.

Nothing is mounted or attached: mke2fs fills the file system from the tree, at its place.
"""

from __future__ import annotations

import struct
from pathlib import Path

from pyvz.errors import TemplateError
from pyvz.linux.run import run
from pyvz.model.task import Progress

START = 2048  # sector of the partition: 1 MiB, behind which disks of today are aligned
SECTOR = 512
_LINUX = 0x83
_CODE = 440  # bytes of the MBR that are the boot loader's
_FEATURES = "^metadata_csum_seed,^orphan_file,^large_dir"  # what GRUB 2.06 cannot read


def assemble(
    tree: Path, target: Path, size: int, loader: tuple[bytes, bytes], progress: Progress
) -> None:
    """Make the raw image TARGET of SIZE bytes from TREE; LOADER: GRUB's boot sector and core."""
    sector, core = loader
    if len(core) > (START - 1) * SECTOR:
        raise TemplateError("the boot loader does not fit in front of the partition")
    with target.open("wb") as file:
        file.truncate(size)
        file.write(mbr(sector, size))
        file.write(core)
    progress.stage("Making the file system")
    blocks = (size - START * SECTOR) // 4096
    argv: list[str | Path] = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root"]
    argv += ["-O", _FEATURES, "-E", f"offset={START * SECTOR},root_owner=0:0", "-m", "1"]
    run([*argv, "-d", tree, target, str(blocks)], timeout=1800.0, poll=progress.check)


def mbr(sector: bytes, size: int) -> bytes:
    """Return the first sector: GRUB's code (it looks for its core in the next one) and the table.

    Source: GRUB, boot/i386/pc/boot.S: the sector of the core is a number at 0x5C, 1 as it comes.
    """
    table = bytearray(sector[:_CODE].ljust(SECTOR, b"\0"))
    length = size // SECTOR - START
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", _LINUX, b"\xfe\xff\xff", START, length)
    table[446:462] = entry
    table[510:512] = b"\x55\xaa"
    return bytes(table)
