"""The images of a machine in `set`: made before vm.conf names them, removed after it forgot them.

The journal record lets a death between be repaired: an image that was to be made and that vm.conf
does not name is removed, and so is one whose removal was decided.  The caller holds the lease.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import AlreadyExists, BadValue, FileMissing, InvalidState, UsageError
from pyvz.linux.loopdevice import SECTOR
from pyvz.model.config import Config
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.operations import home, machinecrypt, machinedrives, machinekeys, machineshot
from pyvz.operations.machineoptions import AWAIT
from pyvz.operations.node import Node
from pyvz.storage import bundle
from pyvz.store.journal import Journal, Record
from pyvz.units import KIB
from pyvz.vm import image

log = logging.getLogger(__name__)

VERB = "machine-set"  # whose journal records `repair` understands
DEFAULT_SIZE = 64 << 20  # KiB


class Changes(NamedTuple):
    """How the drives change, by name; grown: disks with their new size in bytes."""

    added: tuple[Drive, ...] = ()
    removed: tuple[Drive, ...] = ()
    changed: tuple[tuple[Drive, Drive], ...] = ()
    grown: tuple[tuple[Drive, int], ...] = ()


@contextmanager
def settled(
    node: Node, env: Environment, old: Config, new: Config, flags: frozenset[str]
) -> Iterator[tuple[Config, Changes]]:
    """Make the images that NEW wants; the block puts it in force and saves it.

    The block gets the configuration with all that is known of its images.  When it fails, images
    that were made are removed; when it ends well, those that are given up are.
    """
    before = {drive.name: drive for drive in old.machine.drives}
    after = [_named(env, drive, before) for drive in new.machine.drives]
    _check_discs(env, before, after)
    removed = tuple(each for name, each in before.items() if name not in {x.name for x in after})
    doomed = [machinedrives.source_of(env, each) for each in removed if _dies(env, each, flags)]
    wanted = [each for each in after if each.name not in before and each.is_disk]
    made = [each for each in wanted if _is_new(env, each, flags)]
    coded = machinecrypt.changed(node, env, before, after, flags)
    after = [coded[each.name][1] if each.name in coded else each for each in after]
    doomed += [machinedrives.source_of(env, old) for old, _ in coded.values()]
    fresh = [*made, *(new for _, new in coded.values())]
    paths = [os.fspath(machinedrives.source_of(env, each)) for each in fresh]
    data = home.to_data(env) | {"made": paths, "doomed": [os.fspath(path) for path in doomed]}
    with Journal.begin(node.paths, env.uuid, VERB, data) as journal, ExitStack() as undo:
        undo.callback(journal.done)
        for drive in made:
            path = machinedrives.source_of(env, drive)
            undo.callback(path.unlink, missing_ok=True)
            key = machinekeys.of(node, drive)
            if key is not None and drive.format == "raw":
                raise UsageError("Only qcow2 images can be encrypted")
            image.create(path, drive.size * KIB, drive.format or "qcow2", key=key)
        for pair in coded.values():
            undo.callback(machinedrives.source_of(env, pair[1]).unlink, missing_ok=True)
            machinecrypt.recode(node, env, *pair)
        final = tuple(_known(env, drive, flags) if drive in wanted else drive for drive in after)
        changes = _compare(env, before, final)
        yield new.changed({"machine.drives": final}), changes
        undo.pop_all()
        for path in doomed:
            _remove(path)


def _named(env: Environment, drive: Drive, before: dict[str, Drive]) -> Drive:
    """Return the drive with a relative path for an image in the home, and a name for a new one."""
    if drive.image:
        path = Path(drive.image)
        if path.is_absolute() and path.parent == env.home.resolve():
            drive = drive._replace(image=path.name)
    elif drive.is_disk and not drive.device and drive.name not in before:
        number = drive.name.removeprefix("hdd")
        drive = drive._replace(image="harddisk.hdd" if number == "0" else f"harddisk{number}.hdd")
    if drive.is_disk and drive.name not in before and not drive.device and not drive.size:
        drive = drive._replace(size=DEFAULT_SIZE)
    return drive


def _check_discs(env: Environment, before: dict[str, Drive], after: list[Drive]) -> None:
    """Refuse a disc that is put in and is not there; raises FileMissing."""
    for drive in after:
        old = before.get(drive.name, Drive(drive.name))
        fresh = (old.image, old.device) != (drive.image, drive.device)
        if fresh and not drive.is_disk and drive.image + drive.device:
            path = machinedrives.source_of(env, drive)
            if not path.exists():
                raise FileMissing(f"{drive.name}: there is no image {path}")


def _is_new(env: Environment, drive: Drive, flags: frozenset[str]) -> bool:
    """Whether the image of an added disk is to be made; raises AlreadyExists, FileMissing."""
    path = machinedrives.source_of(env, drive)
    if drive.device:
        if "recreate" in flags:
            raise UsageError("--recreate is for images, not for devices of the node")
        return False
    if path.exists():
        if "recreate" in flags:
            raise AlreadyExists(
                f"{path} exists already: it is not overwritten", hint="Remove it first."
            )
        return False
    if AWAIT in flags:
        return False
    if not path.parent.is_dir():
        raise FileMissing(f"There is no directory {path.parent}")
    return True


def _dies(env: Environment, drive: Drive, flags: frozenset[str]) -> bool:
    if not {"destroy-image", "destroy-image-force"} & flags:
        return False
    if not drive.image or not drive.is_disk:
        raise UsageError(f"{drive.name} has no image that could be destroyed")
    if machinedrives.source_of(env, drive).parent != env.home:
        raise UsageError(
            f"The image of {drive.name} is not in the home of {env.name}",
            hint="Remove it by hand when nobody else uses it.",
        )
    if "destroy-image-force" not in flags and machineshot.is_kept(env, drive):
        raise InvalidState(
            f"The disk {drive.name} is part of snapshots",
            hint="Delete the snapshots, or use --destroy-image-force, or --detach-only.",
        )
    return True


def _remove(path: Path) -> None:
    """Remove an image, or a ploop disk; idempotent."""
    if bundle.is_one(path):
        bundle.remove(path)
    else:
        path.unlink(missing_ok=True)


def measured(node: Node, env: Environment, config: Config) -> Config:
    """Return the configuration with the sizes of images that came after their disks (size 0).

    Raises FileMissing, BadValue, StorageError.  The caller holds the lease.
    """
    drives = tuple(
        _known(env, each)
        if each.is_disk and each.enabled and each.image and not each.size and not each.base
        else each
        for each in config.machine.drives
    )
    if drives == config.machine.drives:
        return config
    found = config.changed({"machine.drives": drives})
    conf = node.registry.conf_file(env)
    for key, text in found.differences(config).items():
        conf.set(key, text)
    node.registry.save(env, conf)
    return found


def _known(env: Environment, drive: Drive, flags: frozenset[str] = frozenset()) -> Drive:
    """Return an added disk with the format and size that its image has; it is checked here."""
    path = machinedrives.source_of(env, drive)
    if AWAIT in flags and not os.path.lexists(path):
        return drive._replace(size=0)
    if bundle.is_one(path):
        if drive.keyid:
            raise UsageError("Only qcow2 images can be encrypted")
        with bundle.held(path) as place:
            return drive._replace(format=machinedrives.BUNDLE, size=place.size // KIB)
    found = image.look(path)
    kind = drive.format or found.format
    if kind not in {"qcow2", "raw"}:
        raise BadValue(
            f"{path} is a {kind} image, which is not used as it is",
            hint="Make a machine of it: prlctl create NAME --vmtype vm --import PATH",
        )
    if kind == "raw" and (found.size == 0 or found.size % SECTOR):
        raise BadValue(f"{path} is no image of a disk: {found.size} bytes are no whole sectors")
    image.check(found, path, kind, keyed=bool(drive.keyid))
    return drive._replace(format=kind, size=max(1, found.size // KIB))


def _compare(env: Environment, before: dict[str, Drive], final: tuple[Drive, ...]) -> Changes:
    names = {drive.name for drive in final}
    pairs = [(before[drive.name], drive) for drive in final if drive.name in before]
    grown = []
    for old, new in pairs:
        if new.is_disk and new.size != old.size:
            if new.size < old.size:
                raise BadValue(f"{new.name}: a disk cannot be made smaller than {old.size} KiB")
            if new.device:
                raise BadValue(f"{new.name} is a device of the node and keeps its size")
            _check_image(env, new)
            grown.append((new, new.size * KIB))
    return Changes(
        added=tuple(drive for drive in final if drive.name not in before),
        removed=tuple(drive for name, drive in before.items() if name not in names),
        changed=tuple((old, new) for old, new in pairs if old != new),
        grown=tuple(grown),
    )


def _check_image(env: Environment, drive: Drive) -> None:
    path = machinedrives.source_of(env, drive)
    if drive.format == machinedrives.BUNDLE:
        bundle.find(path)
        return
    found = image.look(path)
    image.check(found, path, drive.format, base=bool(drive.base), keyed=bool(drive.keyid))


def repair(node: Node, record: Record) -> None:
    """Remove images that a killed change left and that vm.conf does not name; repeatable."""
    env = home.from_data(record.uuid, record.data)
    log.warning("%s: repairing an unfinished change of disks", env.name)
    named = {
        os.fspath(machinedrives.source_of(env, drive))
        for drive in node.registry.config(env).machine.drives
    }
    for key in ("made", "doomed"):
        paths = record.data.get(key)
        for path in paths if isinstance(paths, list) else []:
            if path not in named:
                _remove(Path(path))
    Journal.forget(node.paths, record.uuid)
