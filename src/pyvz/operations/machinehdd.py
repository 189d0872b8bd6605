"""Disks of virtual machines by the path of their image, as prl_disk_tool has them.

An image that belongs to a machine is changed under its lease, and (but for growing) while it does
not run; one that is nobody's can be changed all the same.  What is written anew is written beside,
compared with the old image, and takes its name in one step.  Sizes are in bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.errors import BadValue, InvalidState, Unsupported
from pyvz.linux import run
from pyvz.linux.file import fsync_directory
from pyvz.model.environment import Environment, Kind
from pyvz.model.grammar_machine import Drive
from pyvz.model.secret import Secret
from pyvz.model.task import Progress
from pyvz.operations import configure, machinedrives, machinekeys
from pyvz.operations.configure import SetRequest
from pyvz.operations.node import Node
from pyvz.storage import bundle
from pyvz.store import savedstates
from pyvz.units import MIB
from pyvz.vm import image

_BLOCK: Final = 1 << 16
_TIMEOUT: Final = 3600.0


class Facts(NamedTuple):
    """allocated: what the image takes.  snapshots: inside it."""

    size: int
    allocated: int
    blocksize: int
    snapshots: tuple[str, ...]


class Hdd(NamedTuple):
    """An image, and whose disk it is, if it is known.  size: of the disk, in bytes."""

    path: Path
    format: str
    size: int
    env: Environment | None
    drive: Drive | None
    key: Secret | None


def find(node: Node, path: str) -> Hdd:
    """Return what is known of an image; raises FileMissing, StorageError (hostile, damaged)."""
    real = Path(path).parent.resolve() / Path(path).name
    env, drive = _owner(node, real) or (None, None)
    if drive is not None and drive.format == machinedrives.BUNDLE:
        return Hdd(real, drive.format, bundle.find(real).size, env, drive, None)
    found = image.look(real)
    kind = drive.format if drive is not None else found.format
    if kind not in {"qcow2", "raw"}:
        raise Unsupported(
            f"{real} is a {kind} image, which is not used as it is",
            hint="Make a machine of it: prlctl create NAME --vmtype vm --import PATH",
        )
    keyed, base = (bool(drive.keyid), bool(drive.base)) if drive is not None else (False, False)
    image.check(found, real, kind, base=base, keyed=keyed)
    key = machinekeys.of(node, drive) if drive is not None else None
    return Hdd(real, kind, found.size, env, drive, key)


def bundle_at(node: Node, path: str) -> str:
    """Return the directory of a ploop disk that a machine has, "" when none has the one at PATH.

    path: the directory, or its DiskDescriptor.xml.
    """
    found = Path(path)
    real = (found if found.is_dir() else found.parent).resolve()
    _, drive = _owner(node, real) or (None, None)
    return os.fspath(real) if drive is not None else ""


def owner(node: Node, path: Path) -> Environment | None:
    """Return the machine that has the disk at PATH, None when there is none."""
    found = _owner(node, path)
    return found[0] if found is not None else None


def _owner(node: Node, path: Path) -> tuple[Environment, Drive] | None:
    for env in node.registry.environments():
        if env.kind != Kind.VM:
            continue
        for drive in node.registry.config(env).machine.drives:
            if drive.is_disk and not drive.device and machinedrives.source_of(env, drive) == path:
                return env, drive
    return None


@contextmanager
def _held(node: Node, path: str, action: str) -> Iterator[Hdd]:
    """Yield an image that is nobody's, or of a machine that does not run, under its lease."""
    hdd = find(node, path)
    with node.lease(hdd.env, action) if hdd.env is not None else nullcontext():
        if hdd.env is not None and hdd.env.uuid in node.machines.running():
            raise InvalidState(
                f"The disk belongs to {hdd.env.name}, which runs",
                hint=f"Stop it: prlctl stop {hdd.env.name}",
            )
        yield hdd


def facts(node: Node, path: str) -> Facts:
    """Return what an image is; it may be in use."""
    hdd = find(node, path)
    inside = image.snapshots(hdd.path, key=hdd.key) if hdd.format == "qcow2" else ()
    return Facts(hdd.size, hdd.path.stat().st_blocks * 512, _BLOCK, inside)


def resize(node: Node, path: str, size: int) -> None:
    """Make a disk larger, also of a machine that runs; what is in it is left to the guest.

    Raises BadValue (smaller: what is behind the new end would be lost), NoSpace.
    """
    hdd = find(node, path)
    if size < hdd.size:
        had = hdd.size >> 20
        raise BadValue(
            f"A disk of a virtual machine cannot be made smaller than the {had} MiB it has"
        )
    if hdd.env is not None and hdd.drive is not None:
        options = (("device-set", hdd.drive.name), ("size", f"{-(-size // MIB)}M"))
        configure.set_options(node, hdd.env.uuid, SetRequest("prlctl", options))
    elif size > hdd.size:
        image.resize(hdd.path, size, hdd.format)


def convert(node: Node, path: str, progress: Progress, *, plain: bool) -> int:
    """Have a disk take space as it is needed, or (plain) the space of the whole disk.

    What is zeros, or was discarded by the guest, goes back to the node.  Returns how many bytes
    less it takes.  Raises InvalidState (runs, has snapshots), Unsupported, NoSpace, Cancelled.
    """
    with _held(node, path, "convert") as hdd, ExitStack() as locked:
        file = hdd.path
        if hdd.format == machinedrives.BUNDLE:
            file = locked.enter_context(bundle.held(hdd.path)).image
        before = file.stat().st_blocks
        if hdd.format == "qcow2":
            _check_alone(hdd)
            _rewrite(hdd, progress, plain=plain)
        elif plain:
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
                os.fsync(stream.fileno())
        else:
            run.run(["fallocate", "--dig-holes", file], timeout=_TIMEOUT, poll=progress.check)
        return (before - file.stat().st_blocks) * 512


def _check_alone(hdd: Hdd) -> None:
    """Raise when a copy of what the guest sees would lose something."""
    if hdd.drive is not None and hdd.drive.base:
        raise Unsupported(f"{hdd.path} is a linked clone, and stands on another image")
    _check_no_snapshots(hdd)
    if image.snapshots(hdd.path, key=hdd.key):
        raise InvalidState(
            f"{hdd.path} has snapshots inside, which would be lost",
            hint="Delete them: prl_disk_tool merge --hdd IMAGE",
        )


def _check_no_snapshots(hdd: Hdd) -> None:
    env = hdd.env
    if env is not None and savedstates.load(env.home).items:
        raise InvalidState(
            f"{env.name} has snapshots, of which the disk is a part",
            hint=f"Delete them first: prlctl snapshot-list {env.name}",
        )


def _rewrite(hdd: Hdd, progress: Progress, *, plain: bool) -> None:
    new = hdd.path.with_name(f".{hdd.path.name}.new")
    new.unlink(missing_ok=True)
    progress.stage(f"Writing {hdd.path.name} anew")
    image.rewrite(hdd.path, new, progress, key=hdd.key, reserved=plain)
    new.chmod(hdd.path.stat().st_mode & 0o777)
    with new.open("r+b") as stream:
        os.fsync(stream.fileno())
    new.replace(hdd.path)
    fsync_directory(hdd.path.parent)


def merge(node: Node, path: str) -> tuple[str, ...]:
    """Delete the snapshots inside an image; what it holds now stays.  Returns their names.

    Raises InvalidState (runs; they are a machine's).
    """
    with _held(node, path, "merge") as hdd:
        _check_no_snapshots(hdd)
        if hdd.format != "qcow2":
            return ()
        inside = image.snapshots(hdd.path, key=hdd.key)
        for tag in inside:
            image.snapshot(hdd.path, "-d", tag, key=hdd.key)
        return inside
