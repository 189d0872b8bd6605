"""Starting, stopping and everything between, by the same operations as `prlctl`."""

from __future__ import annotations

from typing import Any

from pyvz.gateway import domain, failure
from pyvz.gateway.connection import Call, Values
from pyvz.gateway.failure import Failure
from pyvz.gateway.machinedefine import CRASH_ACTIONS
from pyvz.model.environment import Environment
from pyvz.model.status import Status
from pyvz.model.task import Progress
from pyvz.operations import configure, lifecycle, register, suspend
from pyvz.operations.configure import SetRequest
from pyvz.operations.lifecycle import StopOptions

Key = dict[str, Any]

START_PAUSED, START_AUTODESTROY, START_FRESH = 1, 2, 8
SHUTDOWN_ACPI = 1
DESTROY_GRACEFUL = 1
UNDEFINE_MANAGED_SAVE = 1
_EVENTS = ("poweroff", "reboot", "crash")  # types of events, with an action for each
_ACTIONS = ("destroy", "restart", "rename-restart", "preserve", "coredump-destroy",
            "coredump-restart")  # fmt: skip
_ALWAYS = {"poweroff": "destroy", "reboot": "restart", "crash": "destroy"}  # of a container


def domain_create(call: Call, progress: Progress, *, dom: Key) -> None:
    """Start it, or bring it back when it is suspended."""
    _start(call, progress, dom, 0)


def domain_create_with_flags(call: Call, progress: Progress, *, dom: Key, flags: int) -> Values:
    """Start it; flag 1 leaves it paused, 8 drops a suspended state first."""
    _start(call, progress, dom, flags)
    return {"dom": domain.find(call.office.node, dom).key}


def domain_shutdown(call: Call, progress: Progress, *, dom: Key) -> None:
    """Ask it to power off, and wait until it has."""
    lifecycle.stop(
        call.office.node, _running(call, dom).uuid, options=StopOptions(noforce=True),
        progress=progress,
    )  # fmt: skip


def domain_shutdown_flags(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """The same; of the ways that flags name, a machine knows the power button (1)."""
    options = StopOptions(noforce=True, acpi=bool(flags & SHUTDOWN_ACPI))
    lifecycle.stop(call.office.node, _running(call, dom).uuid, options=options, progress=progress)


def domain_destroy(call: Call, progress: Progress, *, dom: Key) -> None:
    """End it at once."""
    lifecycle.stop(
        call.office.node, _running(call, dom).uuid, options=StopOptions(kill=True),
        progress=progress,
    )  # fmt: skip


def domain_destroy_flags(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """The same; with flag 1 it is asked only."""
    if flags & DESTROY_GRACEFUL:
        domain_shutdown(call, progress, dom=dom)
    else:
        domain_destroy(call, progress, dom=dom)


def domain_reboot(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """Stop it orderly and start it again."""
    _ = flags
    lifecycle.restart(call.office.node, _running(call, dom).uuid, progress=progress)


def domain_reset(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """End it at once and start it again."""
    _ = flags
    lifecycle.restart(
        call.office.node, _running(call, dom).uuid, stop_options=StopOptions(kill=True),
        progress=progress,
    )  # fmt: skip


def domain_suspend(call: Call, _progress: Progress, *, dom: Key) -> None:
    """Halt every process where it is."""
    env = _running(call, dom)
    if call.office.node.status(env) != Status.PAUSED:
        lifecycle.pause(call.office.node, env.uuid)


def domain_resume(call: Call, _progress: Progress, *, dom: Key) -> None:
    """Let a paused one go on."""
    env = _running(call, dom)
    if call.office.node.status(env) == Status.PAUSED:
        lifecycle.resume(call.office.node, env.uuid)


def domain_undefine(call: Call, _progress: Progress, *, dom: Key) -> None:
    """Forget it; its files stay (`prlctl register` brings it back), as with every driver."""
    _undefine(call, dom, 0)


def domain_undefine_flags(call: Call, _progress: Progress, *, dom: Key, flags: int) -> None:
    """The same; a flag allows that of a suspended one (1), whose state stays with its files."""
    _undefine(call, dom, flags)


def domain_set_autostart(call: Call, progress: Progress, *, dom: Key, autostart: int) -> None:
    """Whether it starts with the node."""
    change(call, progress, dom, ("onboot", "on" if autostart else "off"))


def domain_get_autostart_once(call: Call, *, dom: Key) -> Values:
    """Never: what starts with the node does so each time."""
    domain.find(call.office.node, dom)
    return {"autostart": 0}


def domain_rename(
    call: Call, progress: Progress, *, dom: Key, new_name: str | None, flags: int
) -> Values:
    """Give it another name."""
    _ = flags
    change(call, progress, dom, ("name", new_name or ""))
    return {"retcode": 0}


def domain_managed_save(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """Suspend it to disk."""
    _ = flags
    suspend.suspend(call.office.node, _running(call, dom).uuid, progress=progress)


def domain_managed_save_remove(call: Call, progress: Progress, *, dom: Key, flags: int) -> None:
    """Drop the suspended state: the next start is a boot."""
    _ = flags
    lifecycle.stop(call.office.node, dom["uuid"], progress=progress)


def domain_set_user_password(
    call: Call, progress: Progress, *, dom: Key, user: str | None, password: str | None, flags: int
) -> None:
    """Set a password inside; flag 1: it is a hash already."""
    words = ("userpasswd", f"{user or ''}:{password or ''}")
    change(call, progress, dom, words, *([("crypted", None)] if flags & 1 else []))


def domain_set_lifecycle_action(
    call: Call, progress: Progress, *, dom: Key, type: int, action: int, flags: int
) -> None:
    """Choose what follows the crash of a machine's guest; all else is always the same."""
    _ = flags
    found = domain.find(call.office.node, dom)
    if type >= len(_EVENTS) or action >= len(_ACTIONS):
        raise Failure(failure.INVALID_ARGUMENT, "There is no such event or action")
    event, word = _EVENTS[type], _ACTIONS[action]
    if domain.is_machine(found) and event == "crash" and word in CRASH_ACTIONS:
        change(call, progress, dom, ("on-crash", CRASH_ACTIONS[word]))
    elif _ALWAYS[event] != word or (domain.is_machine(found) and event == "crash"):
        raise Failure(
            failure.OPERATION_UNSUPPORTED, f"<on_{event}>{word}</on_{event}> is not supported"
        )


def change(call: Call, progress: Progress, dom: Key, *options: tuple[str, str | None]) -> None:
    """Change its configuration with the options of `prlctl set`."""
    found = domain.find(call.office.node, dom)
    configure.set_options(call.office.node, found.env.uuid, SetRequest("prlctl", options), progress)


def _start(call: Call, progress: Progress, dom: Key, flags: int) -> None:
    node = call.office.node
    found = domain.find(node, dom)
    if flags & ~(START_PAUSED | START_FRESH):
        raise Failure(failure.UNSUPPORTED, f"Starting with the flags 0x{flags:x} is not supported")
    if found.running:
        raise Failure(failure.OPERATION_INVALID, f"Domain is already running: {found.env.name}")
    if flags & START_FRESH and found.status == Status.SUSPENDED:
        lifecycle.stop(node, found.env.uuid)
    lifecycle.start(node, found.env.uuid, progress=progress)
    if flags & START_PAUSED:
        lifecycle.pause(node, found.env.uuid)


def _running(call: Call, dom: Key) -> Environment:
    return domain.find_running(call.office.node, dom).env


def _undefine(call: Call, dom: Key, flags: int) -> None:
    found = domain.find(call.office.node, dom)
    if found.running:
        raise Failure(
            failure.OPERATION_INVALID, f"Domain is running and cannot be deleted: {found.env.name}"
        )
    if found.status == Status.SUSPENDED and not flags & UNDEFINE_MANAGED_SAVE:
        raise Failure(
            failure.OPERATION_INVALID,
            f"{found.env.name} is suspended: undefine it with --managed-save to lose that state",
        )
    register.unregister(call.office.node, found.env.uuid)
