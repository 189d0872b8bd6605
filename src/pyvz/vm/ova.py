"""OVA: a tar archive of an OVF description, disk images and a manifest; hostile.

Its members are not unpacked: an image is read where it is in the archive.  Only the headers are
read here, a bounded number of them, and only plain files with plain names count.
Sources: DMTF DSP0243 (OVF 2.1), section 5.1; POSIX pax, "ustar Interchange Format".
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import StorageError
from pyvz.model.task import Progress
from pyvz.vm.image import open_image

BLOCK = 512
MAX_MEMBERS = 64
MAX_TEXT = 4 << 20  # bytes of a description or manifest
_MAX_HEADER = 64 << 10  # bytes of a pax header
_PART = 4 << 20
_NAME = re.compile(r"[^/\x00-\x1f]{1,200}")
_DIGEST = re.compile(r"(SHA1|SHA256|SHA512) ?\(([^()]+)\) ?= ?([0-9a-fA-F]+)\s*")


class Member(NamedTuple):
    """A file of an appliance.  path: where it is; offset, size: its place there."""

    name: str
    path: Path
    offset: int
    size: int

    def text(self) -> str:
        """Return its content; raises StorageError when it is too long."""
        if self.size > MAX_TEXT:
            raise StorageError(f"{self.name} in {self.path} is far too long")
        descriptor = open_image(self.path, writable=False)
        try:
            return os.pread(descriptor, self.size, self.offset).decode("utf-8", "replace")
        finally:
            os.close(descriptor)


def members(path: Path) -> dict[str, Member]:
    """Return the files of an archive by name; raises FileMissing, StorageError."""
    descriptor = open_image(path, writable=False)
    try:
        found = {each.name: each for each in _members(descriptor, path)}
    finally:
        os.close(descriptor)
    if not found:
        raise StorageError(f"{path} is no archive of a virtual machine (OVA)")
    return found


def _members(descriptor: int, path: Path) -> Iterator[Member]:
    end = os.fstat(descriptor).st_size
    offset, known = 0, _Known()
    for _ in range(MAX_MEMBERS):
        header = os.pread(descriptor, BLOCK, offset)
        if len(header) < BLOCK or not header.strip(b"\0"):
            return
        _check_sum(header, path)
        size = known.size if known.size is not None else _number(header[124:136], path)
        begin = offset + BLOCK
        if size < 0 or begin + size > end:
            raise StorageError(f"{path} is cut off")
        kind = header[156:157]
        if kind == b"x":
            known = _pax(os.pread(descriptor, min(size, _MAX_HEADER), begin))
        elif kind in {b"0", b"\0"}:
            name = known.name or header[:100].rstrip(b"\0").decode("utf-8", "replace")
            if not _NAME.fullmatch(name) or name in {".", ".."}:
                raise StorageError(f"{path} has a file whose name leads elsewhere: it is refused")
            yield Member(name, path, begin, size)
            known = _Known()
        elif kind != b"g":
            raise StorageError(f"{path} holds something else than plain files: it is refused")
        offset = begin + -(-size // BLOCK) * BLOCK
    raise StorageError(f"{path} has more than {MAX_MEMBERS} files: it is refused")


class _Known(NamedTuple):
    """What a pax header says of the file behind it."""

    name: str = ""
    size: int | None = None


def _pax(data: bytes) -> _Known:
    fields = dict(re.findall(rb"\d+ (path|size)=([^\n]*)\n", data))
    size = fields.get(b"size", b"")
    name = fields.get(b"path", b"").decode("utf-8", "replace")
    return _Known(name, int(size) if re.fullmatch(rb"\d{1,18}", size) else None)


def _check_sum(header: bytes, path: Path) -> None:
    wanted = _number(header[148:156], path)
    if sum(header[:148]) + sum(header[156:]) + 8 * 32 != wanted:
        raise StorageError(f"{path} is no archive of a virtual machine (OVA), or is damaged")


def _number(field: bytes, path: Path) -> int:
    """Read a number of a header: octal, or (of more than 8 GiB) binary."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b"\0 ")
    if not re.fullmatch(rb"[0-7]{0,12}", text):
        raise StorageError(f"{path} is no archive of a virtual machine (OVA), or is damaged")
    return int(text or b"0", 8)


def beside(path: Path) -> dict[str, Member]:
    """Return the files beside a description that lies in a folder (.ovf), as in an archive."""
    found: dict[str, Member] = {}
    for entry in sorted(os.scandir(path.parent), key=lambda each: each.name):
        if entry.is_file(follow_symlinks=False):
            size = entry.stat(follow_symlinks=False).st_size
            found[entry.name] = Member(entry.name, Path(entry.path), 0, size)
    return found


def verify(files: dict[str, Member], manifest: Member, progress: Progress) -> None:
    """Compare the files with the digests of a manifest; raises StorageError, Cancelled."""
    for line in manifest.text().splitlines():
        seen = _DIGEST.fullmatch(line)
        if not seen:
            continue
        kind, name, wanted = seen.groups()
        if name not in files:
            raise StorageError(f"{name}, which {manifest.name} names, is missing")
        progress.stage(f"Checking {name}")
        if _digest(files[name], kind.lower(), progress) != wanted.lower():
            raise StorageError(
                f"{name} is damaged: its content is not what {manifest.name} says",
                hint="Copy or download it anew.",
            )


def _digest(member: Member, kind: str, progress: Progress) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    descriptor = open_image(member.path, writable=False)
    try:
        for done in range(0, member.size, _PART):
            part = os.pread(descriptor, min(_PART, member.size - done), member.offset + done)
            digest.update(part)
            progress.advance(done + len(part), member.size)
    finally:
        os.close(descriptor)
    return digest.hexdigest()
