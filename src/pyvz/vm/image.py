"""Disk images of virtual machines: made, grown, copied by qemu-img; looked at by ourselves.

Images are hostile: a header may name other files (a backing file, an external data file), which
whoever opens the image would open too.  So the format is never guessed by QEMU, the header is read
here before anything else opens the image, and one that names a file is refused.
Source: docs/interop/qcow2.txt of QEMU.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import BadValue, Busy, CommandFailed, FileMissing, StorageError, Unsupported
from pyvz.linux.file import reflink
from pyvz.linux.run import run
from pyvz.model.secret import Secret
from pyvz.model.task import Progress

PROGRAM = "qemu-img"
CLUSTER = "64k"
WRONG_KEY = "Invalid password"  # of QEMU, when a key does not open an image
_ITERATIONS = "encrypt.iter-time=200"  # ms for one guess: keys of the store are long
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # 104 bytes: version 3
_VDI = b"\x7f\x10\xda\xbe"
_DATA_FILE = 1 << 2  # incompatible feature: the data is in another file
_LUKS = 2  # crypt_method; 1 is AES as it was before, which keeps no secret
_MAX_SIZE = 1 << 53
_MAX_TABLE = 32 << 20  # bytes: QEMU's own limit for L1, and more than it takes for reference counts
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
    luks: bool = False


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
    _check_tables(fields, os.lseek(descriptor, 0, os.SEEK_END), path)
    backing = os.pread(descriptor, length, offset).decode("utf-8", "replace") if offset else ""
    return Image("qcow2", size, backing, bool(features & _DATA_FILE), crypt != 0, crypt == _LUKS)


def _check_tables(fields: tuple[int, ...], end: int, path: Path) -> None:
    """Raise StorageError when the tables that the header names are not in the file."""
    bits, entries, first, counts, clusters = fields[4], *fields[7:11]
    if 8 * entries > _MAX_TABLE or clusters << bits > _MAX_TABLE:
        raise StorageError(f"{path} is not a qcow2 image that makes sense")
    if first + 8 * entries > end or counts + (clusters << bits) > end:
        raise StorageError(f"{path} is a torn qcow2 image")


def check(
    image: Image, path: Path, wanted: str, *, base: bool = False, keyed: bool = False
) -> None:
    """Raise what speaks against giving an image to a machine as one of format WANTED.

    base: it was made by us over another image, which the configuration names.  keyed: a key is
    known for it.
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
    if image.encrypted and not image.luks:
        raise Unsupported(f"{path} is encrypted in a way that keeps no secret: it is refused")
    if image.encrypted != keyed:
        raise StorageError(
            f"{path} is encrypted" if image.encrypted else f"{path} is not encrypted",
            hint="Its key is named by --encryption-keyid." if image.encrypted else "",
        )


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


def create(path: Path, size: int, kind: str = "qcow2", *, key: Secret | None = None) -> None:
    """Make an image of SIZE bytes; nothing may be there.  KEY: it is encrypted with that."""
    if path.exists():
        raise StorageError(f"{path} exists already")
    with ExitStack() as opened:
        keys = _Keys(opened)
        options = f"cluster_size={CLUSTER},lazy_refcounts=off" if kind == "qcow2" else ""
        options += keys.format(key)
        argv: list[str | Path] = [PROGRAM, "create", "-q", *keys.objects, "-f", kind]
        argv += ["-o", options] if options else []
        _run([*argv, path, str(size)], path, keys)
    path.chmod(0o600)


def convert(
    source: Path,
    target: Path,
    kind: str,
    progress: Progress,
    *,
    wanted: str = "qcow2",
    keys: tuple[Secret | None, Secret | None] = (None, None),
) -> None:
    """Copy an image of format KIND whole into TARGET; can be called off.  TARGET is removed on
    failure.  KEYS: of the source, and of the copy.
    """
    with _whole(source, target), ExitStack() as opened:
        held = _Keys(opened)
        words = held.image(source, kind, keys[0])
        options = f"cluster_size={CLUSTER}{held.format(keys[1])}"
        argv: list[str | Path] = [PROGRAM, "convert", *held.objects, "-O", wanted]
        argv += ["-o", options] if wanted == "qcow2" else []
        descriptors = held.descriptors
        run([*argv, *words, target], timeout=None, poll=progress.check, pass_fds=descriptors)
        target.chmod(0o600)


@contextmanager
def _whole(source: Path, target: Path) -> Iterator[None]:
    """Have TARGET made by the block, or not be there; what qemu-img says is said of SOURCE."""
    try:
        yield
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


def resize(
    path: Path, size: int, kind: str, *, key: Secret | None = None, shrink: bool = False
) -> None:
    """Make an image that nobody uses larger, or (shrink) smaller: what is behind it is lost."""
    with ExitStack() as opened:
        keys = _Keys(opened)
        words = keys.image(path, kind, key)
        less = ["--shrink"] if shrink else []
        _run([PROGRAM, "resize", "-q", *less, *keys.objects, *words, str(size)], path, keys)


def snapshot(path: Path, verb: str, tag: str, *, key: Secret | None = None) -> None:
    """Make (-c), apply (-a) or delete (-d) a snapshot inside an image that nobody uses."""
    with ExitStack() as opened:
        keys = _Keys(opened)
        words = keys.image(path, "", key)
        argv: list[str | Path] = [PROGRAM, "snapshot", "-q", *keys.objects, verb, tag]
        _run([*argv, *words], path, keys, timeout=600.0)


def rewrite(
    path: Path, target: Path, progress: Progress, *, key: Secret | None, reserved: bool
) -> None:
    """Write a qcow2 image anew into TARGET and compare; RESERVED: with the space of a full disk.

    Can be called off.  Raises StorageError (they differ), NoSpace; TARGET is removed then.
    """
    with _whole(path, target), ExitStack() as opened:
        keys = _Keys(opened)
        source = keys.image(path, "", key)[-1]
        options = f"cluster_size={CLUSTER}{keys.format(key)}"
        options += ",preallocation=falloc" if reserved else ""
        copy = keys.image(target, "", key)[-1]
        given: list[str | Path] = ["--image-opts"] if key else ["-f", "qcow2"]
        both: list[str | Path] = ["--image-opts"] if key else ["-f", "qcow2", "-F", "qcow2"]
        convert_: list[str | Path] = [PROGRAM, "convert", *keys.objects, "-O", "qcow2"]
        convert_ += ["-o", options, *given, source, target]
        compare: list[str | Path] = [PROGRAM, "compare", "-q", *keys.objects, *both, source, copy]
        for argv in (convert_, compare):
            run(argv, timeout=None, poll=progress.check, pass_fds=keys.descriptors)


def snapshots(path: Path, *, key: Secret | None = None) -> tuple[str, ...]:
    """Return the names of the snapshots inside a qcow2 image, which may be in use."""
    with ExitStack() as opened:
        keys = _Keys(opened)
        words = keys.image(path, "qcow2", key)
        told = _run([PROGRAM, "info", "-U", "--output=json", *keys.objects, *words], path, keys)
    return tuple(str(each["name"]) for each in json.loads(told).get("snapshots", ()))


class _Keys:
    """Keys for one run of qemu-img: in files of memory, of which only the number is in its words.

    OPENED closes them.
    """

    def __init__(self, opened: ExitStack) -> None:
        self.descriptors: list[int] = []
        self._opened = opened

    @property
    def objects(self) -> list[str]:
        """The words that make QEMU read the keys."""
        words: list[str] = []
        for number, descriptor in enumerate(self.descriptors):
            words += ["--object", f"secret,id=key{number},file=/proc/self/fd/{descriptor}"]
        return words

    def _add(self, key: Secret) -> str:
        descriptor = secret_file(key)
        self._opened.callback(os.close, descriptor)
        self.descriptors.append(descriptor)
        return f"key{len(self.descriptors) - 1}"

    def format(self, key: Secret | None) -> str:
        """Return the options of a new image that KEY encrypts."""
        if key is None:
            return ""
        return f",encrypt.format=luks,encrypt.key-secret={self._add(key)},{_ITERATIONS}"

    def image(self, path: Path, kind: str, key: Secret | None) -> list[str | Path]:
        """Return the words for an image that is there; kind "": qcow2, which needs no telling."""
        if key is None:
            return [*(["-f", kind] if kind else []), path]
        name = os.fspath(path).replace(",", ",,")
        opening = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret={self._add(key)}"
        return ["--image-opts", f"{opening},file.driver=file,file.filename={name}"]


def secret_file(key: Secret) -> int:
    """Return a descriptor of a file in memory that holds KEY, which may be opened again."""
    descriptor = os.memfd_create("key", os.MFD_CLOEXEC)
    os.write(descriptor, key.reveal().encode("utf-8", "surrogateescape"))
    return descriptor


def drop_bitmaps(path: Path, *, key: Secret | None = None) -> None:
    """Remove every dirty bitmap of an image that nobody uses; one that has none is left alone."""
    with ExitStack() as opened:
        keys = _Keys(opened)
        words = keys.image(path, "qcow2", key)
        told = _run([PROGRAM, "info", "--output=json", *keys.objects, *words], path, keys)
        details = json.loads(told).get("format-specific", {}).get("data", {})
        for each in details.get("bitmaps", ()):
            argv = [PROGRAM, "bitmap", "--remove", *keys.objects, *words, str(each["name"])]
            _run(argv, path, keys)


def _run(argv: list[str | Path], path: Path, keys: _Keys, timeout: float = 120.0) -> str:
    try:
        return run(argv, timeout=timeout, pass_fds=keys.descriptors).stdout
    except CommandFailed as error:
        raise explained(error, path) from error


def explained(error: CommandFailed, path: Path) -> StorageError | BadValue | Unsupported:
    """Return the error that says in our words what qemu-img meant."""
    if "not installed" in error.message:
        return Unsupported(
            "qemu-img is not installed on this node",
            hint="Install it with: script/bootstrap --vm (package qemu-utils)",
        )
    if WRONG_KEY in error.details:
        return BadValue(f"The key does not open {path}")
    if "lock" in error.details:
        return Busy(f"{path} is in use by another program", details=error.details)
    return StorageError(f"qemu-img failed on {path}", details=error.details)
