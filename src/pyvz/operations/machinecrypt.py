"""Disks that are encrypted, decrypted, or get another key: copied into a new image, which vm.conf
then names instead of the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pyvz.errors import AlreadyRunning, Unsupported, UsageError
from pyvz.model.environment import Environment
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import NoProgress
from pyvz.operations import machinedrives, machinekeys, machinestate
from pyvz.operations.node import Node
from pyvz.store import savedstates
from pyvz.vm import image

Pair = tuple[Drive, Drive]


def changed(
    node: Node,
    env: Environment,
    before: Mapping[str, Drive],
    after: Iterable[Drive],
    flags: frozenset[str],
) -> dict[str, Pair]:
    """Return the disks that are to be coded anew, as they are and as they will be.

    Raises UsageError, Unsupported, AlreadyRunning, NotFound (key).
    """
    found: dict[str, Pair] = {}
    for drive in after:
        old = before.get(drive.name)
        again = f"reencrypt {drive.name}" in flags
        if (again or f"encrypt {drive.name}" in flags) and not drive.keyid:
            raise UsageError("--encrypt needs --encryption-keyid")
        if old is not None and (again or old.keyid != drive.keyid):
            _check(node, env, drive)
            machinekeys.of(node, drive)
            found[drive.name] = (old, drive._replace(image=_free_name(env, drive)))
    return found


def _check(node: Node, env: Environment, drive: Drive) -> None:
    if env.uuid in node.machines.running():
        raise AlreadyRunning(
            f"The disk of {env.name} is in use", hint="Stop it, then change the encryption."
        )
    if drive.format != "qcow2" or drive.device or drive.base:
        raise Unsupported(f"{drive.name} is no qcow2 image of its own: it is not encrypted")
    if savedstates.load(env.home).items or machinestate.path(env).exists():
        raise Unsupported(
            f"{env.name} has snapshots or a saved state, which need the disk as it is",
            hint="Delete them first.",
        )


def _free_name(env: Environment, drive: Drive) -> str:
    path = machinedrives.source_of(env, drive)
    stem = path.stem.partition("-")[0]
    taken = (path.with_name(f"{stem}-{number}{path.suffix}") for number in range(1, 1000))
    fresh: Path = next(each for each in taken if not each.exists())
    return fresh.name if fresh.parent == env.home else str(fresh)


def recode(node: Node, env: Environment, old: Drive, new: Drive) -> None:
    """Make the new image of a disk; the old one stays until vm.conf names the new one."""
    source, target = (machinedrives.source_of(env, each) for each in (old, new))
    image.check(image.look(source), source, "qcow2", keyed=bool(old.keyid))
    keys = (machinekeys.of(node, old), machinekeys.of(node, new))
    image.convert(source, target, "qcow2", NoProgress(), keys=keys)
