"""Virtual machines from elsewhere: a disk image (qcow2, raw, vmdk, vdi, vhd, vhdx), OVA or OVF, or
the ploop disk of a Virtuozzo (a directory with a DiskDescriptor.xml).

Everything is looked at before anything is made; then the images are copied into a new home, so the
source stays as it is.  Network cards are not taken over: where they lead is not known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.errors import StorageError, Unsupported
from pyvz.image import identity
from pyvz.image.disk import NAME, RAW
from pyvz.model.grammar import Pair
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.storage import bundle
from pyvz.storage.ploopdisk import Disk
from pyvz.units import KIB, MIB, PAGE_SIZE
from pyvz.vm import foreign, ova, ovf
from pyvz.vm.foreign import Foreign
from pyvz.vm.ovf import Appliance


class Imported(NamedTuple):
    """What was found.  disks: images in the order of the disks, with the bus of each."""

    appliance: Appliance
    disks: tuple[tuple[Foreign, str], ...]


def examine(path: Path, progress: Progress) -> Imported:
    """Look at what is to be imported; raises FileMissing, StorageError, Unsupported, Cancelled."""
    progress.stage(f"Looking at {path.name}")
    kind = path.suffix.lower()
    if kind == ".ova":
        return _appliance(ova.members(path), path, progress)
    if kind == ".ovf":
        return _appliance(ova.beside(path), path, progress)
    found = _bundle(Disk(path)) if bundle.is_one(path) else foreign.recognise(path)
    return Imported(Appliance(), ((found, "scsi"),))


def _bundle(disk: Disk) -> Foreign:
    """Return what is in a ploop disk now, whose snapshots are left where they are."""
    disk.check_idle()
    top, about = disk.top(), disk.descriptor()
    if about.mode != RAW and identity.is_identity(top):
        place = bundle.find(disk.path)
        return Foreign(top, "raw", place.size, place.offset, place.size)
    if len(about.images) > 1:
        raise Unsupported(
            f"{disk.path} has its content in {len(about.images)} images",
            hint=f"Make it whole first: ploop convert -f preallocated {disk.path / NAME}",
        )
    return foreign.recognise(top)


def _appliance(files: dict[str, ova.Member], path: Path, progress: Progress) -> Imported:
    suffix = ".ovf"
    names = [name for name in files if name.lower().endswith(suffix)]
    described = path.name if path.suffix.lower() == suffix else next(iter(names), "")
    if described not in files:
        raise StorageError(f"{path} has no description (.ovf) of a virtual machine")
    about = ovf.parse(files[described].text())
    manifest = files.get(described[: -len(suffix)] + ".mf")
    if manifest is not None:
        ova.verify(files, manifest, progress)
    disks = []
    for disk in about.disks:
        member = files.get(disk.file)
        if member is None:
            raise StorageError(f"The image {disk.file[:200]} of {path} is missing")
        inside = member.path == path
        length = member.size if inside else 0
        disks.append((foreign.recognise(member.path, member.offset, length), disk.bus))
    if about.cards:
        progress.stage(f"Leaving out {about.cards} network cards: add them with --device-add net")
    return Imported(about, tuple(disks))


def _image(index: int) -> str:
    return f"harddisk{index or ''}.hdd"


def drives(wanted: Imported) -> list[Drive]:
    """Return the disks as the new configuration has them; where they are is still free."""
    return [
        Drive(f"hdd{index}", iface=bus, position=-1, size=found.size // KIB, image=_image(index))
        for index, (found, bus) in enumerate(wanted.disks)
    ]


def settings(wanted: Imported) -> dict[str, object]:
    """Return what else the appliance says of the machine."""
    about = wanted.appliance
    # Images of clouds wait for somebody to tell them who they are; others have a disc more.
    told: dict[str, object] = {"machine.cloud_init": True}
    if about.cpus:
        told["cpu.cpus"] = about.cpus
    if about.memory:
        pages = about.memory * MIB // PAGE_SIZE
        told["memory.physpages"] = Pair(pages, pages)
    if about.efi:
        told["machine.efi"] = True
    return told


def fill(wanted: Imported, staging: Path, progress: Progress) -> None:
    """Copy the images into a new home; raises StorageError, NoSpace, Busy, Cancelled."""
    for index, (found, _) in enumerate(wanted.disks):
        progress.stage(f"Converting hdd{index} ({found.format}, {found.size >> 20} MiB)")
        foreign.take_over(found, staging, _image(index), progress)
