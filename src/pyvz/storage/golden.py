"""Golden images: a template unpacked once into an image, of which new disks are reflink clones.

    <cache>/<archive name>.<fstype>.<size>.ploop/     root.hds, DiskDescriptor.xml
                                                 key  which archive it was made of
    <cache>/.<...>.ploop.lock                         held by the one who makes it

<cache> is the folder of the archive itself where that lies on the file system of the homes, else
`.golden/` beside the homes: blocks are shared within one file system only.  A golden image is good
as long as its key names the archive as it is now (size, times and inode: any change is noticed).

An archive is unpacked into an image of one of SIZES.  Those of other whole GiB are clones of the
largest of these that is not larger, grown once, so that a disk of a size that was asked for before
is a bare reflink; and by so little that the file system's layout still suits it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvz.errors import Locked, StorageError
from pyvz.image import descriptor, disk, identity
from pyvz.image.disk import Descriptor
from pyvz.linux import archive, features, file, filesystem, loopdevice
from pyvz.model.task import Progress
from pyvz.storage import ploopdisk, ploopsize

log = logging.getLogger(__name__)

_GIB: Final = 1 << 30
SIZES: Final = (*(n * _GIB for n in (1, 2, 5, 10, 20, 50, 100, 200, 500)),)
FOLDER: Final = ".golden"
_KEY: Final = "key"
_FORMAT: Final = "1"
_BUILD_TIMEOUT: Final = 1800.0


def build(
    path: Path,
    size: int,
    made: tuple[str, int | None],
    source: Path | None,
    progress: Progress,
) -> None:
    """Make the new image `path` of `size` bytes with a file system, and unpack `source` into it.

    made: the kind of the file system, and how many inodes it has (None: what suits it).

    Whoever is killed in it leaves the file, but neither a mount nor a device.
    Raises TemplateError, NoSpace, Cancelled; the caller removes the file.
    """
    fstype, inodes = made
    identity.create(path, size)
    offset, size = identity.data_offset(path), identity.size(path)
    with loopdevice.attached(path, offset, size) as loop:
        filesystem.make(loop.device, fstype, inodes=inodes)
        mounted = filesystem.mount_detached(loop.device, fstype)
        try:
            _fill(mounted, source, progress)
        finally:
            os.close(mounted)
    ploopdisk.wait_detached(path)


def _fill(mounted: int, source: Path | None, progress: Progress) -> None:
    """Unpack into a mount that is nowhere in the tree: it dies with its last user."""
    place = Path(f"/proc/{os.getpid()}/fd/{mounted}")
    with contextlib.suppress(OSError):
        (place / "lost+found").rmdir()  # e2fsck makes it again when it needs it
    place.chmod(0o755)
    if source is not None:
        archive.unpack(source, place, progress)
        progress.stage("Writing to disk")
    filesystem.sync(mounted)


def can_share(directory: Path) -> bool:
    """Whether files in `directory` can share blocks; tried each time, for it costs nothing."""
    return bool(features.reflink_at(directory))


def _unpacked_size(size: int) -> int:
    """Return the size of the image into which the archive is unpacked, for one of `size` bytes."""
    return max((each for each in SIZES if each <= size), default=size)


def directory_for(home: Path, source: Path) -> Path:
    """Return where golden images of `source` for homes beside `home` are kept."""
    if source.parent.stat().st_dev == home.stat().st_dev:
        return source.parent
    return home.parent / FOLDER


@contextlib.contextmanager
def image(home: Path, source: Path, size: int, fstype: str, progress: Progress) -> Iterator[Path]:
    """Yield the golden image of `source` for a disk of `size` bytes, made when there is none yet.

    Several who ask at once wait for one who makes it.  It stays as it is during the block.
    Raises TemplateError, NoSpace, Cancelled, Locked (another one has been making it for ever).
    """
    size = size // _GIB * _GIB or size
    directory = directory_for(home, source)
    directory.mkdir(mode=0o700, exist_ok=True)
    final = directory / f"{source.name}.{fstype}.{size >> 20}M.ploop"
    key = f"{_FORMAT} {stamp(source)}\n"
    with _locked(directory / f".{final.name}.lock", progress):
        if _key_of(final) != key:
            _make(final, key, (home, size, fstype, source), progress)
        yield final / disk.BASE_FILE


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock; waiting for it can be cancelled."""
    for attempt in range(int(_BUILD_TIMEOUT)):
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(file.flock(path, timeout=1.0))
            except Locked:
                if attempt == 0:
                    progress.stage("Waiting for the image of the template")
                progress.check()
                continue
            yield
            return
    raise Locked(f"The image of the template is being made by somebody else: {path.name}")


def _make(final: Path, key: str, what: tuple[Path, int, str, Path], progress: Progress) -> None:
    home, size, fstype, source = what
    new = final.with_name(f"{final.name}.new")
    file.remove_tree(new)
    file.remove_tree(final)
    new.mkdir(mode=0o700)
    try:
        unpacked = _unpacked_size(size)
        if unpacked < size:
            with image(home, source, unpacked, fstype, progress) as smaller:
                clone(smaller, new / disk.BASE_FILE, size)
        else:
            progress.stage(f"Making an image of {source.name}")
            build(new / disk.BASE_FILE, size, (fstype, None), source, progress)
        size = identity.size(new / disk.BASE_FILE)
        descriptor.save(new / descriptor.NAME, Descriptor(size))
        file.write_atomic(new / _KEY, key)
        new.rename(final)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    file.fsync_directory(final.parent)


def clone(original: Path, image: Path, size: int) -> None:
    """Make the new `image` share the blocks of a golden one, and grow to `size` bytes."""
    if not file.reflink(original, image):
        raise StorageError(f"{original} and {image} cannot share blocks")
    ploopsize.grow_image(image, size)


def _key_of(final: Path) -> str:
    try:
        return (final / _KEY).read_text(encoding="utf-8")
    except OSError:
        return ""


def stamp(path: Path) -> str:
    """Return what tells one version of a file from the next; ctime cannot be set by anybody."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def forget(directory: Path, source_name: str | None = None) -> None:
    """Remove the golden images in `directory` (of one archive, or of all); those in use stay."""
    for path in directory.glob(f"{source_name or '*'}.*.ploop"):
        with contextlib.suppress(Locked), file.flock(path.with_name(f".{path.name}.lock")):
            file.remove_tree(path)
