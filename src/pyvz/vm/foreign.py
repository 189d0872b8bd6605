"""Disk images that were made elsewhere: what they are, and copies of them as images of ours.

They are hostile.  A few bytes of their head are read here; whatever understands more of them runs
secluded (secluded.py), and what names another file is refused.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed, StorageError, Unsupported
from pyvz.linux.run import failure, run
from pyvz.model.task import Progress
from pyvz.vm import image

MAX_SIZE = 64 << 40  # bytes that a guest may see of one disk
_INFO = 60.0  # seconds
_CHECK = 1800.0  # seconds: the tables of the largest images are read whole
_SLACK = 256 << 20  # bytes that an image may be larger than what is in it
_PERCENT = re.compile(r"\(([0-9.]+)/100%\)")
_CHECKED = frozenset({"qcow2", "vmdk", "vdi", "parallels", "qed"})  # vhdx is when it is opened
_DAMAGED = 2  # exit status of qemu-img check
_FINE = frozenset({3, 63})  # only room is lost; this kind cannot be checked
_KNOWN = frozenset({"qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "parallels", "qed"})


class Foreign(NamedTuple):
    """An image to take over.  size: bytes that the guest sees.

    offset, length: where it is in the file (a member of an archive); length 0: all of it.
    """

    path: Path
    format: str
    size: int
    offset: int = 0
    length: int = 0


def recognise(path: Path, offset: int = 0, length: int = 0) -> Foreign:
    """Return what image is there; raises FileMissing, StorageError (none, not whole), Unsupported.

    A file with no head that is known is raw when it consists of whole sectors.
    """
    descriptor = image.open_image(path, writable=False)
    try:
        head = os.pread(descriptor, 4096, offset)
        size = length or os.lseek(descriptor, 0, os.SEEK_END)
        tail = os.pread(descriptor, 8, offset + size - 512) if size >= 512 else b""
        kind = image.kind_of(head) or ("vpc" if tail == b"conectix" else "raw")
        if kind not in _KNOWN:
            raise Unsupported(f"{path} is a {kind} image, which cannot be imported")
        if kind == "raw" and (size == 0 or size % 512):
            raise StorageError(f"{path} is no disk image")
        if kind == "qcow2" and not length:
            image.check(image.read_header(descriptor, path), path, "qcow2")
        found = Foreign(path, kind, size, offset, length)
        seen = _info(found, descriptor)
        if kind in _CHECKED:
            _check(found, descriptor)
    finally:
        os.close(descriptor)
    if not 0 < seen <= MAX_SIZE:
        raise StorageError(f"{path} says that its disk has {seen} bytes: it is refused")
    return found._replace(size=seen)


def _info(found: Foreign, descriptor: int) -> int:
    """Return the size that the guest sees; raises StorageError when others belong to it."""
    argv = _secluded(descriptor, "-", 0)
    argv += [image.PROGRAM, "info", "--output=json", "--image-opts", _options(found)]
    try:
        text = run(argv, timeout=_INFO, pass_fds=(descriptor,)).stdout
        about = json.loads(text)
        size, backing = int(about["virtual-size"]), about.get("backing-filename", "")
    except CommandFailed as error:
        raise image.explained(error, found.path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{found.path} cannot be understood") from error
    if backing:
        raise StorageError(
            f"{found.path} is not whole: it stands on '{str(backing)[:200]}'",
            hint="Merge it with what is below it where it comes from.",
        )
    return size


def _check(found: Foreign, descriptor: int) -> None:
    """Raise StorageError for an image that was cut off: what is missing would be read as zeros."""
    argv = [*_secluded(descriptor, "-", 0), image.PROGRAM, "check", "-q", "--image-opts"]
    words = [*argv, _options(found)]
    done = run(words, timeout=_CHECK, pass_fds=(descriptor,), check=False)
    if done.code == _DAMAGED:
        raise StorageError(
            f"{found.path} is cut off or damaged",
            details="\n".join(done.stderr.splitlines()[:3]),
            hint="Copy or download it anew.",
        )
    if done.code and done.code not in _FINE:
        error = failure([os.fspath(word) for word in words], done)
        raise image.explained(error, found.path) if isinstance(error, CommandFailed) else error


def take_over(found: Foreign, directory: Path, name: str, progress: Progress) -> None:
    """Copy FOUND into the qcow2 image NAME of DIRECTORY; can be called off.

    Raises StorageError, NoSpace, Busy, Cancelled: nothing is left then.
    """

    def percent(line: str) -> None:
        seen = _PERCENT.search(line)
        if seen:
            with suppress(ValueError):
                progress.advance(int(float(seen[1]) * found.size / 100), found.size)

    target = directory / name
    descriptor = image.open_image(found.path, writable=False)
    argv = _secluded(descriptor, directory, found.size + found.size // 32 + _SLACK)
    argv += [image.PROGRAM, "convert", "-p", "--image-opts", "-O", "qcow2"]
    argv += ["-o", f"cluster_size={image.CLUSTER}", _options(found), f"/out/{name}"]
    try:
        run(argv, timeout=None, poll=progress.check, on_line=percent, pass_fds=(descriptor,))
        target.chmod(0o600)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, CommandFailed):
            raise image.explained(error, found.path) from error
        raise
    finally:
        os.close(descriptor)


def _secluded(descriptor: int, directory: Path | str, size: int) -> list[str | Path]:
    argv: list[str | Path] = [sys.executable, "-P", "-m", "pyvz.vm.secluded"]
    return [*argv, f"/proc/self/fd/{descriptor}", directory, str(size)]


def _options(found: Foreign) -> str:
    """Return qemu-img's words for the image at /in."""
    if not found.length:
        return f"driver={found.format},file.driver=file,file.filename=/in"
    part = f"driver=raw,file.offset={found.offset},file.size={found.length}"
    return f"driver={found.format},file.{part},file.file.driver=file,file.file.filename=/in"
