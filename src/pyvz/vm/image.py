"""Disk images of virtual machines: made, grown, copied by qemu-img; looked at by ourselves.

Images are hostile: a header may name other files (a backing file, an external data file), which
whoever opens the image would open too.  So the format is never guessed by QEMU, the header is read
here before anything else opens the image, and one that names a file is refused.
Source: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, Busy, CommandFailed, FileMissing, StorageError, Unsupported
from pyvz.linux.file import reflink
from pyvz.linux.run import run
from pyvz.model.task import Progress

PROGRAM = "qemu-img"
CLUSTER = "64k"
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # 104 bytes: version 3
_VDI = b"\x7f\x10\xda\xbe"
_DATA_FILE = 1 << 2  # incompatible feature: the data is in another file
_MAX_SIZE = 1 << 53
_OTHERS = (
    (b"KDMV", "vmdk"), (b"# Disk DescriptorFile", "vmdk"), (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"), (b"WithoutFreeSpace", "parallels"), (b"WithouFreSpacExt", "parallels"),
    (b"LUKS\xba\xbe", "luks"), (b"QED\0", "qed"), (_MAGIC, "qcow2"),
)  # fmt: skip


class Image(NamedTuple):
    """What a header says.  size: bytes that the guest sees.  backing: "" or the file below."""

    format: str
    size: int
    backing: str = ""
    data_file: bool = False
    encrypted: bool = False


def look(path: Path) -> Image:
    """Read the header; a file without one is raw.  Raises FileMissing, StorageError."""
    descriptor = open_image(path, writable=False)
    try:
        return read_header(descriptor, path)
    finally:
        os.close(descriptor)


def read_header(descriptor: int, path: Path) -> Image:
    """Read the header of an open image."""
    head = os.pread(descriptor, 4096, 0)
    if head[:4] == _MAGIC:
        return _qcow2(descriptor, head, path)
    if kind := kind_of(head):
        return Image(kind, 0)
    found = os.fstat(descriptor)
    size = os.lseek(descriptor, 0, os.SEEK_END) if stat.S_ISBLK(found.st_mode) else found.st_size
    return Image("raw", size)


def kind_of(head: bytes) -> str:
    """Return what the first 4 KiB of an image say that it is, "" for raw."""
    if head[0x40:0x44] == _VDI:
        return "vdi"
    return next((name for magic, name in _OTHERS if head.startswith(magic)), "")


def _qcow2(descriptor: int, head: bytes, path: Path) -> Image:
    if len(head) < 72:
        raise StorageError(f"{path} is a torn qcow2 image")
    fields = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
    _, version, offset, length, bits, size, crypt = fields[:7]
    features = fields[13] if version >= 3 else 0
    if version not in {2, 3} or not 9 <= bits <= 21 or size > _MAX_SIZE or length > 1023:
        raise StorageError(f"{path} is not a qcow2 image that makes sense")
    backing = os.pread(descriptor, length, offset).decode("utf-8", "replace") if offset else ""
    return Image("qcow2", size, backing, bool(features & _DATA_FILE), crypt != 0)


def check(image: Image, path: Path, wanted: str, *, base: bool = False) -> None:
    """Raise what speaks against giving an image to a machine as one of format WANTED.

    base: it was made by us over another image, which the configuration names.
    """
    if image.backing and not base:
        raise StorageError(
            f"{path} names another file, '{image.backing[:200]}', below it: it is refused",
            hint="Make it whole first: qemu-img convert -O qcow2 IMAGE NEW",
        )
    if image.data_file:
        raise StorageError(f"{path} keeps its data in another file: it is refused")
    if image.format != wanted and not (wanted == "raw" and image.format not in {"qcow2"}):
        raise StorageError(f"{path} is not a {wanted} image, but {image.format}")
    if wanted == "raw" and image.format == "qcow2":
        raise StorageError(f"{path} is a qcow2 image, not a raw one")
    if image.encrypted:
        raise Unsupported(f"{path} is encrypted, which is not supported by this version")


def open_image(path: Path, *, writable: bool) -> int:
    """Open an image or block device, never a link; raises FileMissing, StorageError."""
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise FileMissing(f"There is no image {path}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(descriptor)
        raise StorageError(f"{path} is neither a file nor a block device")
    os.set_blocking(descriptor, True)
    return descriptor


def takes_direct(path: Path) -> bool:
    """Whether the file system can do I/O without the page cache (tmpfs cannot)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def create(path: Path, size: int, kind: str = "qcow2", *, base: Path | None = None) -> None:
    """Make an image of SIZE bytes; nothing may be there.  BASE: an image that it stands on."""
    if path.exists():
        raise StorageError(f"{path} exists already")
    options = f"cluster_size={CLUSTER},lazy_refcounts=off" if kind == "qcow2" else ""
    argv: list[str | Path] = [PROGRAM, "create", "-q", "-f", kind]
    argv += ["-o", options] if options else []
    argv += ["-b", base.name, "-F", "qcow2"] if base is not None else []
    _run([*argv, path, str(size)], path)
    path.chmod(0o600)


def convert(
    source: Path, target: Path, kind: str, progress: Progress, *, wanted: str = "qcow2"
) -> None:
    """Copy an image of format KIND whole into TARGET; can be called off.  TARGET is removed on
    failure.
    """
    argv: list[str | Path] = [PROGRAM, "convert", "-f", kind, "-O", wanted]
    argv += ["-o", f"cluster_size={CLUSTER}"] if wanted == "qcow2" else []
    try:
        run([*argv, source, target], timeout=None, poll=progress.check)
        target.chmod(0o600)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, CommandFailed):
            raise explained(error, source) from error
        raise


def copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy an image as it is, snapshots included: a reflink where the file system can."""
    if reflink(source, target):
        target.chmod(0o600)
        return
    try:
        argv: list[str | Path] = ["cp", "--sparse=always", "--", source, target]
        run(argv, timeout=None, poll=progress.check)
        target.chmod(0o600)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def resize(path: Path, size: int, kind: str, *, shrink: bool = False) -> None:
    """Give an image that nobody uses another size."""
    argv: list[str | Path] = [PROGRAM, "resize", "-q", "-f", kind]
    _run([*argv, *(["--shrink"] if shrink else []), path, str(size)], path)


def snapshot(path: Path, verb: str, tag: str) -> None:
    """Make (-c), apply (-a) or delete (-d) a snapshot inside an image that nobody uses."""
    _run([PROGRAM, "snapshot", "-q", verb, tag, path], path, timeout=600.0)


def _run(argv: list[str | Path], path: Path, timeout: float = 120.0) -> str:
    try:
        return run(argv, timeout=timeout).stdout
    except CommandFailed as error:
        raise explained(error, path) from error


def explained(error: CommandFailed, path: Path) -> StorageError | BadValue | Unsupported:
    """Return the error that says in our words what qemu-img meant."""
    if "not installed" in error.message:
        return Unsupported(
            "qemu-img is not installed on this node",
            hint="Install it with: script/bootstrap --vm (package qemu-utils)",
        )
    if "lock" in error.details:
        return Busy(f"{path} is in use by another program", details=error.details)
    return StorageError(f"qemu-img failed on {path}", details=error.details)
