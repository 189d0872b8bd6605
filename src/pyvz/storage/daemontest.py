"""Whether what is written through a storage daemon's FUSE file by a loop device comes out right.

Until QEMU 10.0.13 (backports: "fuse: Copy write buffer content before polling") concurrent writes
with direct I/O overwrote each other's buffers: silent corruption of every format.  The version
number says little about a distribution's patches, so it is tried: every sector gets a stamp of its
own, and the file behind is compared.  With the page cache of the node in between (no direct I/O)
those versions are right; that is tried as well before it is used.

The answer holds for one boot and one program:  <pool>/.storage-daemon
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from pyvz.errors import StorageError, Unsupported
from pyvz.linux import file, loopdevice, process, run
from pyvz.storage.daemon import PROGRAM, Daemon, Node, why_not

ANSWER: Final = ".storage-daemon"  # in the pool
SCRATCH: Final = ".storage-daemon-test"  # beside the disk, while it is tried
_SIZE: Final = 40 << 20
_STEP: Final = 4 << 20
_SECTOR: Final = 512
_DETACH_TIMEOUT: Final = 30.0
_known: dict[str, bool] = {}
_guard = threading.Lock()


def direct_io(place: Path) -> bool:
    """Return whether loop devices on FUSE files may use direct I/O; tried once in the pool PLACE.

    Raises Unsupported when not even buffered I/O comes out right.
    """
    if why := why_not():
        raise Unsupported(f"Images cannot be shown by a storage daemon: {why}")
    key = _key()
    with _guard:
        if key not in _known:
            answer = _read(place / ANSWER, key)
            if answer is None:
                answer = _try(place)
                file.write_atomic(place / ANSWER, json.dumps({"key": key, "direct": answer}))
            _known[key] = answer
        return _known[key]


def forget(place: Path) -> None:
    """Remove what is kept in the pool PLACE, also by a test that was killed."""
    (place / ANSWER).unlink(missing_ok=True)
    _clear(place / SCRATCH)


def _key() -> str:
    program = shutil.which(PROGRAM, path=run.ENVIRONMENT["PATH"]) or ""
    status = Path(program).stat()
    return f"{process.boot_id()} {program} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _read(path: Path, key: str) -> bool | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_text_limited(path))
        if found["key"] == key and isinstance(found["direct"], bool):
            return found["direct"]
    return None


def _try(place: Path) -> bool:
    scratch = place / SCRATCH
    with file.flock(place / f"{SCRATCH}.lock", timeout=120.0):
        try:
            for direct in (True, False):
                if writes_come_out(scratch, direct=direct):
                    return direct
        finally:
            _clear(scratch)
            (place / f"{SCRATCH}.lock").unlink(missing_ok=True)
    raise Unsupported(
        f"What {PROGRAM} writes is not what it was given: it cannot be used on this node",
        hint="Install a newer version of QEMU.",
    )


def writes_come_out(scratch: Path, *, direct: bool) -> bool:
    """Write through a loop device on a daemon's file in the new directory SCRATCH, and compare."""
    _clear(scratch)
    scratch.mkdir(mode=0o700)
    image = scratch / "raw"
    with image.open("xb") as stream:
        stream.truncate(_SIZE)
    daemon = Daemon(scratch / "daemon")
    daemon.start([file_node(image), {"driver": "raw", "node-name": "disk", "file": "file"}])
    try:
        with loopdevice.attached(daemon.device, 0, _SIZE, direct=direct) as loop:
            _write(loop.device)
            backing = loopdevice.backing_of(loop.minor)
        if backing is not None:
            loopdevice.wait_gone(loop.minor, backing, _DETACH_TIMEOUT)
    except OSError:
        return False
    finally:
        daemon.stop()
    with image.open("rb") as stream:
        return all(stream.read(_STEP) == _stamped(at) for at in range(0, _SIZE, _STEP))


def file_node(image: Path, *, readonly: bool = False, locking: bool = True) -> Node:
    """Return the block node `file` for an image file, opened past the page cache where it can."""
    node: dict[str, object] = {
        **{"driver": "file", "node-name": "file", "filename": os.fspath(image)},
        **{"locking": "on" if locking else "off", "read-only": readonly, "discard": "unmap"},
    }
    try:
        fd = os.open(image, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if not image.is_file() or image.is_symlink():
            raise StorageError(f"{image} is not a regular file") from error
        return node  # a file system without direct I/O: tmpfs of older kernels
    os.close(fd)
    return {**node, "cache": {"direct": True}}


def _write(device: Path) -> None:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        for at in range(0, _SIZE, _STEP):
            os.pwrite(fd, _stamped(at), at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _stamped(offset: int) -> bytes:
    """Return _STEP bytes in which every sector says where on the disk it belongs."""
    numbers = range(offset // _SECTOR, (offset + _STEP) // _SECTOR)
    return b"".join(number.to_bytes(8, "big") * (_SECTOR // 8) for number in numbers)


def _clear(scratch: Path) -> None:
    Daemon(scratch / "daemon").stop()
    file.remove_tree(scratch)
