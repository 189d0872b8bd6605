"""Keys, interrupts and sizes of disks of a virtual machine, as somebody beside it would."""

from __future__ import annotations

from typing import Any, Final

from pyvz.gateway import containerdisk, domain, failure, machineblock
from pyvz.gateway.calls_lifecycle import change
from pyvz.gateway.connection import Call
from pyvz.gateway.domain import Domain
from pyvz.gateway.failure import Failure
from pyvz.model.task import Progress
from pyvz.operations import machineguest
from pyvz.units import KIB, MIB

Key = dict[str, Any]

LINUX, XT = 0, 1  # sets of key codes; the others are refused
BYTES: Final = 1  # flag of block_resize: not KiB
_MOST_KEYS: Final = 16

# linux/input-event-codes.h numbers the keys of a PC/AT as their scan codes; those behind are:
_BEHIND: Final = {
    96: 0x9C, 97: 0x9D, 98: 0xB5, 99: 0x54, 100: 0xB8, 102: 0xC7, 103: 0xC8, 104: 0xC9, 105: 0xCB,
    106: 0xCD, 107: 0xCF, 108: 0xD0, 109: 0xD1, 110: 0xD2, 111: 0xD3, 113: 0xA0, 114: 0xAE,
    115: 0xB0, 116: 0xDE, 119: 0xC6, 125: 0xDB, 126: 0xDC, 127: 0xDD,
}  # fmt: skip
_SAME: Final = range(1, 89)


def domain_send_key(
    call: Call,
    _progress: Progress,
    *,
    dom: Key,
    codeset: int,
    holdtime: int,
    keycodes: list[int],
    flags: int,
) -> None:
    """Press keys together, and release them after HOLDTIME milliseconds (0: as usual)."""
    _ = flags
    found = _machine(call, dom)
    if codeset not in {LINUX, XT}:
        raise Failure(failure.OPERATION_UNSUPPORTED, "Keys have codes of linux or xt here")
    if not 0 < len(keycodes) <= _MOST_KEYS:
        raise Failure(failure.INVALID_ARGUMENT, f"Between 1 and {_MOST_KEYS} keys can be pressed")
    codes = [_scan_code(code) if codeset == LINUX else code for code in keycodes]
    machineguest.press(call.office.node, found.env, codes, hold=holdtime)


def domain_inject_nmi(call: Call, _progress: Progress, *, dom: Key, flags: int) -> None:
    """Interrupt the guest as the button on a server's board does."""
    _ = flags
    found = _machine(call, dom)
    call.office.node.machines.monitor(found.env.uuid).execute("inject-nmi")


def domain_block_resize(
    call: Call, progress: Progress, *, dom: Key, disk: str, size: int, flags: int
) -> None:
    """Make a disk larger, in force at once; KiB, or bytes with flag 1."""
    found = domain.find(call.office.node, dom)
    if flags & ~BYTES:
        raise Failure(failure.UNSUPPORTED, f"A new size with the flags 0x{flags & ~BYTES:x}")
    wanted = size if flags & BYTES else size * KIB
    machine = domain.is_machine(found)
    name = machineblock.find(found, disk).name if machine else containerdisk.find(found, disk)[0]
    if not wanted or wanted % MIB:
        raise Failure(failure.INVALID_ARGUMENT, "A disk has a size in whole MiB")
    change(call, progress, dom, ("device-set", name), ("size", f"{wanted // MIB}M"))


def _machine(call: Call, dom: Key) -> Domain:
    found = domain.find_running(call.office.node, dom)
    if not domain.is_machine(found):
        raise Failure(failure.OPERATION_UNSUPPORTED, f"{found.env.name} is a container")
    return found


def _scan_code(code: int) -> int:
    found = code if code in _SAME else _BEHIND.get(code)
    if found is None:
        raise Failure(failure.INVALID_ARGUMENT, f"The key {code} is not on the keyboard of a PC")
    return found
