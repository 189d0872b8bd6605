"""ptrace(2) on x86_64: the calls that linux/loaded.py needs.  Source: linux/ptrace.h, user.h."""

from __future__ import annotations

import ctypes
import os

EXITKILL = 1 << 20  # an option: the traced process dies with who traces it

_TRACEME = 0
_CONT = 7
_GETREGS, _SETREGS = 12, 13
_DETACH = 17
_SETOPTIONS = 0x4200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags"),
            *("rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]

    def copy(self) -> Registers:
        """Return another with the same values."""
        return Registers.from_buffer_copy(self)


def traceme() -> None:
    """Be traced by the parent: the next execve(2) stops with SIGTRAP."""
    _call("PTRACE_TRACEME", _TRACEME, 0)


def set_options(pid: int, options: int) -> None:
    """Set PTRACE_O_... of a process that is stopped."""
    _call("PTRACE_SETOPTIONS", _SETOPTIONS, pid, options)


def proceed(pid: int) -> None:
    """Let a stopped process go on, traced."""
    _call("PTRACE_CONT", _CONT, pid)


def registers(pid: int) -> Registers:
    """Return the registers of a stopped process."""
    found = Registers()
    _call("PTRACE_GETREGS", _GETREGS, pid, ctypes.addressof(found))
    return found


def set_registers(pid: int, wanted: Registers) -> None:
    """Set the registers of a stopped process."""
    _call("PTRACE_SETREGS", _SETREGS, pid, ctypes.addressof(wanted))


def detach(pid: int) -> None:
    """Let a stopped process go on and be traced no more."""
    _call("PTRACE_DETACH", _DETACH, pid)


def _call(name: str, request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
