"""The images of a virtual machine, looked at and opened for QEMU, which may open nothing itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import FileMissing, StorageError
from pyvz.linux import blockdevice
from pyvz.linux.file import write_atomic
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.storage import bundle
from pyvz.vm import firmware, image
from pyvz.vm.mirror import Target
from pyvz.vm.spec import DriveSpec, Firmware, boot_places

BUNDLE = "ploop"  # format of a disk that is a directory (storage/bundle.py)


class Opened(NamedTuple):
    """Drives for QEMU, the descriptors behind their names, and the disks of the node below."""

    drives: tuple[DriveSpec, ...]
    descriptors: tuple[int, ...]
    disks: tuple[tuple[int, int], ...]


def path_of(env: Environment, text: str) -> Path:
    """Return the path that an image of the configuration means."""
    return env.home / text


def source_of(env: Environment, drive: Drive) -> Path:
    """Return the image or device of a drive."""
    return path_of(env, drive.image or drive.device)


def size_of(env: Environment, drive: Drive) -> int:
    """Return how many bytes the guest sees of a disk; raises FileMissing, StorageError."""
    path = source_of(env, drive)
    return bundle.find(path).size if drive.format == BUNDLE else image.look(path).size


def file_of(drive: Drive, path: Path) -> Path:
    """Return the file or device in which the content of the disk at PATH is."""
    return bundle.image_of(path) if drive.format == BUNDLE else path


def make(drive: Drive, path: Path, size: int, key: Secret | None) -> None:
    """Make an empty image at PATH of the drive's format; raises StorageError, NoSpace."""
    if drive.format == BUNDLE:
        bundle.create(path, size)
    else:
        image.create(path, size, drive.format, key=key)


@contextmanager
def target_of(drive: Drive, path: Path) -> Iterator[Target]:
    """Open the image at PATH, which `make` made, for a mirror of the drive."""
    with ExitStack() as opened:
        if drive.format == BUNDLE:
            place = bundle.find(path)
            yield Target(_opened(place.image, opened, writable=True), "raw", offset=place.offset)
        else:
            descriptor = _opened(path, opened, writable=True)
            yield Target(descriptor, drive.format, secret_of(drive))


def secret_of(drive: Drive) -> str:
    """Return what QEMU calls the key of a disk, "" when it has none."""
    return f"key-{drive.name}" if drive.keyid else ""


def open_all(env: Environment, config: Config, opened: ExitStack) -> Opened:
    """Check and open every drive that is enabled; OPENED closes the descriptors.

    Raises FileMissing, StorageError, Unsupported.
    """
    places = boot_places(config)
    drives, descriptors = [], []
    disks: dict[tuple[int, int], None] = {}
    for drive in config.machine.drives:
        if not drive.enabled:
            continue
        spec, own = open_one(env, drive, opened, boot=places.get(drive.name, 0))
        for descriptor in own:
            disks |= dict.fromkeys(_disks_below(descriptor, source_of(env, drive)))
        drives.append(spec)
        descriptors += own
    return Opened(tuple(drives), tuple(descriptors), tuple(disks))


def open_one(
    env: Environment, drive: Drive, opened: ExitStack, *, boot: int = 0
) -> tuple[DriveSpec, list[int]]:
    """Open one drive; the lowest image comes last among the descriptors."""
    spec = DriveSpec(drive.name, drive.iface, drive.position, drive.format, boot=boot)
    spec = spec._replace(readonly=not drive.is_disk, serial=drive.serial, discard=drive.autocompact)
    if not drive.is_disk:
        spec = spec._replace(format="raw")
    elif drive.keyid:
        spec = spec._replace(secret=secret_of(drive))
    if not (drive.image or drive.device) or not (drive.is_disk or drive.connected):
        return spec, []
    path = source_of(env, drive)
    if drive.format == BUNDLE:
        return _open_bundle(path, spec, opened)
    if not drive.is_disk and not path.exists():
        raise FileMissing(
            f"{drive.name}: there is no image {path}",
            hint=f"Without it: prlctl set {env.name} --device-disconnect {drive.name}",
        )
    top = _open(path, drive, opened)
    own = [top]
    driver = "host_device" if stat.S_ISBLK(os.fstat(top).st_mode) else "file"
    direct = drive.is_disk and image.takes_direct(path)
    spec = spec._replace(file=f"/dev/fdset/{top}", driver=driver, direct=direct)
    if drive.base:
        base = path_of(env, drive.base)
        below = _opened(base, opened, writable=False)
        image.check(image.read_header(below, base), base, "qcow2")
        own.append(below)
        spec = spec._replace(base=f"/dev/fdset/{below}")
    return spec, own


def _open_bundle(path: Path, spec: DriveSpec, opened: ExitStack) -> tuple[DriveSpec, list[int]]:
    """Open the image of a ploop disk; it is locked until OPENED is left, and by QEMU then."""
    place = opened.enter_context(bundle.held(path))
    own = _opened(place.image, opened, writable=True)
    spec = spec._replace(format="raw", offset=place.offset, file=f"/dev/fdset/{own}")
    return spec._replace(direct=image.takes_direct(place.image)), [own]


def _open(path: Path, drive: Drive, opened: ExitStack) -> int:
    descriptor = _opened(path, opened, writable=drive.is_disk)
    wanted = drive.format if drive.is_disk else "raw"
    found = image.read_header(descriptor, path)
    image.check(found, path, wanted, base=bool(drive.base), keyed=bool(drive.keyid))
    if wanted == "raw" and found.format == "raw" and not found.size and drive.is_disk:
        raise StorageError(f"{path} is empty")
    return descriptor


def _opened(path: Path, opened: ExitStack, *, writable: bool) -> int:
    descriptor = image.open_image(path, writable=writable)
    opened.callback(os.close, descriptor)
    return descriptor


def _disks_below(descriptor: int, path: Path) -> list[tuple[int, int]]:
    """The disks of the node that an image lies on: what I/O limits are for."""
    found = os.fstat(descriptor)
    if stat.S_ISBLK(found.st_mode):
        return [(os.major(found.st_rdev), os.minor(found.st_rdev))]
    return list(blockdevice.disks_of(path))


def open_firmware(
    env: Environment, opened: ExitStack, *, secure: bool = False
) -> tuple[Firmware, int]:
    """Open the machine's UEFI variables, made from those to begin with when there are none yet."""
    ovmf = firmware.find(secure=secure)
    path = env.home / firmware.VARIABLES
    if not path.exists():
        write_atomic(path, ovmf.variables.read_bytes(), 0o600)
    descriptor = _opened(path, opened, writable=True)
    return Firmware(os.fspath(ovmf.code), f"/dev/fdset/{descriptor}", secure), descriptor
