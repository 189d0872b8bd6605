"""Jobs on one disk of a machine: copied, made whole, looked at, ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree.ElementTree import Element

from pyvz.gateway import domain, failure, machineblock
from pyvz.gateway.connection import Call
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.gateway.notes import parsed
from pyvz.gateway.xdr import Typed
from pyvz.model.grammar_machine import Drive
from pyvz.model.task import Progress
from pyvz.operations import machineblockcopy, machineblockjob
from pyvz.operations.machineblockcopy import Copy
from pyvz.units import MIB

Key = dict[str, Any]

PULL_BYTES: Final = 64  # flag of a pull: its speed is in bytes, not MiB
SHALLOW, REUSE, RAW, COPY, DEVICE = 1, 2, 4, 8, 32  # of a rebase, as is BYTES
REBASE_BYTES: Final = 64
TRANSIENT: Final = 4  # of a copy: it does not outlive QEMU, which is so anyway
PIVOT: Final = 2  # of an end; 1 is "do not wait"
SPEED_BYTES: Final = 1  # of the speed
_FORMATS: Final = ("qcow2", "raw")
_NOT_OVER: Final = (
    "A machine does not go over to a copy of its disk: end it with --finish, or move the machine"
    " with prlctl move"
)


class _Wanted(NamedTuple):
    """A job that is begun: of a disk, by a function of what it calls once it goes."""

    found: Domain
    run: Callable[[Callable[[], None], Progress], None]


async def domain_block_pull(call: Call, arguments: dict[str, Any]) -> None:
    """Make the disk of a linked clone whole; goes on when this is answered."""
    await _begin(call, partial(_pull, call, **arguments))


async def domain_block_rebase(call: Call, arguments: dict[str, Any]) -> None:
    """The same, or (flag 8) copy a disk into the image that stands where the base would."""
    await _begin(call, partial(_rebase, call, **arguments))


async def domain_block_copy(call: Call, arguments: dict[str, Any]) -> None:
    """Copy a disk into an image, until the job is ended; goes on when this is answered."""
    await _begin(call, partial(_copy_to, call, **arguments))


def domain_block_commit(
    call: Call, _progress: Progress, *, dom: Key, disk: str, **_: object
) -> None:
    """Nothing: what is below the disk of a linked clone belongs to others as well."""
    found = _machine(call, dom)
    drive = machineblock.find(found, disk)
    why = (
        "the image below it belongs to the template of all its clones"
        if drive.base
        else "there is no image below it"
    )
    raise Failure(
        failure.OPERATION_UNSUPPORTED, f"{disk} of {found.env.name} cannot be committed: {why}"
    )


def domain_block_job_abort(
    call: Call, _progress: Progress, *, dom: Key, path: str, flags: int
) -> None:
    """End the job on a disk, and wait until it has ended; a copy is whole when it was ready."""
    if flags & PIVOT:
        raise Failure(failure.OPERATION_UNSUPPORTED, _NOT_OVER)
    found = _machine(call, dom)
    disk = machineblock.find(found, path).name
    machineblockjob.cancel(call.office.node, found.env, disk)


def domain_block_job_set_speed(
    call: Call, _progress: Progress, *, dom: Key, path: str, bandwidth: int, flags: int
) -> None:
    """Limit the job on a disk; MiB per second, or bytes with flag 1."""
    found = _machine(call, dom)
    disk = machineblock.find(found, path).name
    speed = _speed(bandwidth, in_bytes=bool(flags & SPEED_BYTES))
    machineblockjob.set_speed(call.office.node, found.env, disk, speed)


async def _begin(call: Call, look: Callable[[], _Wanted]) -> None:
    wanted = await call.office.query(look)
    await call.office.begin(
        call.procedure.name,
        wanted.found.env.name,
        lambda progress, begun: wanted.run(begun, progress),
        call.client.peer,
    )


def _machine(call: Call, dom: Key) -> Domain:
    found = domain.find_running(call.office.node, dom)
    domain.check_machine(found, "its disks have no block jobs")
    return found


def _speed(bandwidth: int, *, in_bytes: bool) -> int:
    return bandwidth if in_bytes else bandwidth * MIB


def _pull(call: Call, *, dom: Key, path: str, bandwidth: int, flags: int) -> _Wanted:
    if flags & ~PULL_BYTES:
        raise Failure(failure.UNSUPPORTED, f"A pull with the flags 0x{flags:x}")
    found = _machine(call, dom)
    disk, uuid = machineblock.find(found, path).name, found.env.uuid
    speed = _speed(bandwidth, in_bytes=bool(flags & PULL_BYTES))

    def run(begun: Callable[[], None], progress: Progress) -> None:
        machineblockcopy.pull(call.office.node, uuid, disk, begun, progress, speed=speed)

    return _Wanted(found, run)


def _rebase(
    call: Call, *, dom: Key, path: str, base: str | None, bandwidth: int, flags: int
) -> _Wanted:
    if not flags & COPY:
        if base is not None:
            raise Failure(
                failure.OPERATION_UNSUPPORTED,
                "There is one image below it: all is pulled",
            )
        return _pull(call, dom=dom, path=path, bandwidth=bandwidth, flags=flags)
    if flags & ~(COPY | REUSE | RAW | REBASE_BYTES):
        raise Failure(failure.UNSUPPORTED, f"A copy with the flags 0x{flags:x}")
    found = _machine(call, dom)
    drive = machineblock.find(found, path)
    form = "raw" if flags & RAW else _form(drive)
    speed = _speed(bandwidth, in_bytes=bool(flags & REBASE_BYTES))
    reuse = bool(flags & REUSE)
    return _copying(call, found, Copy(drive.name, _target(base), form, reuse, speed))


def _copy_to(
    call: Call, *, dom: Key, path: str, destxml: str, params: list[Typed], flags: int
) -> _Wanted:
    if flags & ~(REUSE | TRANSIENT):
        raise Failure(failure.UNSUPPORTED, f"A copy with the flags 0x{flags:x}")
    found = _machine(call, dom)
    drive = machineblock.find(found, path)
    place, form = destination_of(destxml)
    speed = 0
    for param in params:
        if param.field != "bandwidth":
            raise Failure(failure.UNSUPPORTED, f"The parameter {param.field} of a copy")
        speed = int(param.value)
    copy = Copy(drive.name, place, form or _form(drive), bool(flags & REUSE), speed)
    return _copying(call, found, copy)


def _copying(call: Call, found: Domain, copy: Copy) -> _Wanted:
    def run(begun: Callable[[], None], progress: Progress) -> None:
        machineblockcopy.copy(call.office.node, found.env.uuid, copy, begun, progress)

    return _Wanted(found, run)


def _form(drive: Drive) -> str:
    """Return the format of a copy when none is said: of a ploop disk its content."""
    return drive.format if drive.format in _FORMATS else "raw"


def destination_of(text: str) -> tuple[Path, str]:
    """Return where a copy goes, and its format, "" when it says none; raises Failure."""
    top = parsed(text, "description of the copy")
    known = {"disk": {"type", "device"}, "source": {"file", "index"}, "driver": {"name", "type"}}
    parts: dict[str, Element] = {each.tag: each for each in top.iter()}
    unknown = [tag for tag in parts if tag not in known]
    unknown += [name for tag, part in parts.items() for name in part.attrib
                if name not in known.get(tag, ())]  # fmt: skip
    if top.tag != "disk" or unknown or top.get("type", "file") != "file":
        raise Failure(
            failure.UNSUPPORTED,
            "A copy goes to a file: <disk type='file'><source file='/path'/>"
            f"<driver type='qcow2'/></disk>{': ' if unknown else ''}{', '.join(unknown)}",
        )
    source, driver = parts.get("source"), parts.get("driver")
    form = (driver.get("type") or "") if driver is not None else ""
    if form not in ("", *_FORMATS):
        raise Failure(failure.UNSUPPORTED, f"An image of the format '{form}': qcow2 or raw")
    return _target(source.get("file") if source is not None else None), form


def _target(path: str | None) -> Path:
    if not path or not path.startswith("/") or not path.isprintable():
        raise Failure(failure.INVALID_ARGUMENT, "The path of a copy has to begin with /")
    return Path(path)
