"""The memory of a domain in files: saved, restored, looked at, and as a core for a debugger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyvz.gateway import domain, failure
from pyvz.gateway.calls_domain import description
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations import lifecycle, machinecore, statefile
from pyvz.operations.lifecycle import StopOptions

Key = dict[str, Any]

RUNNING, PAUSED = 2, 4  # flags of save and restore: how it is when it comes back
CRASH, LIVE, RESET, MEMORY_ONLY = 1, 2, 8, 16  # of a core: what follows, and what is in it


def domain_save(call: Call, progress: Progress, *, dom: Key, to: str) -> None:
    """Write its memory to a file and end it."""
    _save(call, progress, dom, to, 0)


def domain_save_flags(
    call: Call, progress: Progress, *, dom: Key, to: str, dxml: str | None, flags: int
) -> None:
    """The same; flags say whether it runs (2) or stands still (4) when it comes back."""
    _refuse_xml(dxml)
    _save(call, progress, dom, to, flags)


def domain_restore(call: Call, progress: Progress, **arguments: str) -> None:
    """Bring back the domain of which a file is the memory."""
    statefile.restore(call.office.node, _path(arguments["from"]), progress)


def domain_restore_flags(
    call: Call, progress: Progress, *, dxml: str | None, flags: int, **arguments: str
) -> None:
    """The same, running (2) or paused (4) whatever the file says."""
    _refuse_xml(dxml)
    path = _path(arguments["from"])
    statefile.restore(call.office.node, path, progress, paused=_paused(flags))


def domain_save_image_get_xml_desc(
    call: Call, _progress: Progress, *, file: str, flags: int
) -> Values:
    """What the domain was when it was saved; without secrets, also with flag 1."""
    _ = call, flags
    return {"xml": statefile.look(_path(file)).about}


def domain_save_image_define_xml(
    call: Call, _progress: Progress, *, file: str, dxml: str, flags: int
) -> None:
    """A domain comes back as it is defined: its description in the file cannot be another."""
    _ = call, flags
    if statefile.look(_path(file)).about.strip() != dxml.strip():
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "What was saved comes back as the domain is defined: define that anew instead",
        )


def domain_managed_save_get_xml_desc(call: Call, *, dom: Key, flags: int) -> Values:
    """What a suspended domain comes back as; flag 1 wants secrets, which there are none of."""
    _ = flags
    found = domain.find(call.office.node, dom)
    if found.status != Status.SUSPENDED:
        raise Failure(
            failure.OPERATION_INVALID, f"Domain {found.env.name} has no managed save image"
        )
    return {"xml": description(call.office.node, found, live=False)}


def domain_core_dump(call: Call, progress: Progress, *, dom: Key, to: str, flags: int) -> None:
    """Write the memory of a machine's guest to a file, as an ELF core."""
    _core(call, progress, dom, (to, 0), flags)


def domain_core_dump_with_format(
    call: Call, progress: Progress, *, dom: Key, to: str, dumpformat: int, flags: int
) -> None:
    """The same, also in the formats of kdump and of Windows."""
    _core(call, progress, dom, (to, dumpformat), flags)


def _core(call: Call, progress: Progress, dom: Key, target: tuple[str, int], flags: int) -> None:
    path, form = target
    node, found = call.office.node, domain.find_running(call.office.node, dom)
    if flags & ~(CRASH | LIVE | RESET | MEMORY_ONLY):
        raise Failure(failure.UNSUPPORTED, f"A core with the flags 0x{flags:x}")
    if domain.is_machine(found) and not flags & MEMORY_ONLY:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "A core with the state of all devices is not written: --memory-only writes the memory,"
            " virsh save the state",
        )
    if form >= len(machinecore.FORMATS):
        raise Failure(
            failure.OPERATION_UNSUPPORTED, f"Formats are {', '.join(machinecore.FORMATS)}"
        )
    word = machinecore.FORMATS[form]
    env = machinecore.write(node, found.env.uuid, _path(path), word, progress)
    if flags & CRASH:
        lifecycle.stop(node, env.uuid, options=StopOptions(kill=True))
    elif flags & RESET:
        lifecycle.restart(node, env.uuid, stop_options=StopOptions(kill=True))


def _save(call: Call, progress: Progress, dom: Key, to: str, flags: int) -> None:
    node, found = call.office.node, domain.find_running(call.office.node, dom)
    statefile.save(
        node, found.env.uuid, _path(to), progress,
        about=description(node, found, live=False), paused=_paused(flags),
    )  # fmt: skip


def _paused(flags: int) -> bool | None:
    if flags & ~(RUNNING | PAUSED) or flags == RUNNING | PAUSED:
        raise Failure(failure.UNSUPPORTED, f"Saving or restoring with the flags 0x{flags:x}")
    return {0: None, RUNNING: False, PAUSED: True}[flags]


def _refuse_xml(dxml: str | None) -> None:
    if dxml is not None:
        raise Failure(
            failure.OPERATION_UNSUPPORTED,
            "What was saved comes back as the domain is defined: --xml is not supported",
        )


def _path(text: str) -> Path:
    if not text.startswith("/") or not text.isprintable():
        raise Failure(failure.INVALID_ARGUMENT, "The path of the file has to begin with /")
    return Path(text)
