"""A program that is loaded and linked and stands before its first instruction, to be told its
arguments when it is needed.

What the dynamic loader does for a large program (QEMU: some 12000 symbols, 5 MB of relocated data)
is most of the time that its execve(2) takes, and the same whatever its arguments are.  So it is
done ahead: the program is executed with empty arguments and stopped by ptrace(2) at its entry point
(AT_ENTRY), where it has one thread and has run no code of its own but the constructors of its
libraries.  There it can be made to do system calls (`perform`), as its launcher would before an
execve(2), and gets its arguments (`go`).  The memory of its heap is touched ahead, too, in as far
as malloc(3) was told to ask for more than it needs (MALLOC_TOP_PAD_).

    stack at the entry     argc  argv[0] .. argv[SLOTS]  NULL  envp[0] .. envp[n]  NULL  auxv
    strings                argv[0], SLOTS empty ones, environment, last of it ROOM=xxxx...

The arguments lie in the room, their vector takes the last of the slots: so everything above it,
which the loader has pointers into, stays where it is.  x86_64 only: the System V ABI's initial
process stack.
"""

from __future__ import annotations

import os
import platform
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from pyvz.linux import syscall_ptrace as ptrace
from pyvz.linux.syscall_ptrace import Registers

SLOTS = 2000  # arguments beside the program's name, at most
TEXTS = 40 << 10  # bytes of their texts, at most
ROOM = 120 << 10  # bytes for these and what `perform` needs; one string has 128 KiB at most
_CORNER = 4 << 10  # the last bytes of it: for ourselves
_ROOM_NAME = "ROOM"
_AT_ENTRY = 9
_BREAKPOINT = b"\xcc"
# Does the r12 system calls of the table at rbx (number, five arguments), leaves each result where
# its number was, and stops.
_PERFORM = bytes.fromhex(
    "488b03"  # again: mov rax, [rbx]
    "488b7b08"  # mov rdi, [rbx+8]
    "488b7310"  # mov rsi, [rbx+16]
    "488b5318"  # mov rdx, [rbx+24]
    "4c8b5320"  # mov r10, [rbx+32]
    "4c8b4328"  # mov r8, [rbx+40]
    "0f05"  # syscall
    "488903"  # mov [rbx], rax
    "4883c330"  # add rbx, 48
    "49ffcc"  # dec r12
    "75db"  # jnz again
    "cc"  # int3
)
_ROW = struct.Struct("<6Q")
_PRCTL, _BRK, _MADVISE = 157, 12, 28
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_MM_MAP = struct.Struct("<12Q2I")  # struct prctl_mm_map of linux/prctl.h


class Call(NamedTuple):
    """A system call to be done.  optional: its failure means nothing."""

    name: str
    number: int
    arguments: tuple[int, ...] = ()
    optional: bool = False


class Scratch:
    """Memory of the program, to be written: values that system calls point to."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.data = bytearray()

    def put(self, value: bytes) -> int:
        """Place VALUE and return its address."""
        self.data += bytes(-len(self.data) % 16)
        at = self.address + len(self.data)
        self.data += value
        return at


def fits(argv: Sequence[str]) -> bool:
    """Whether a loaded program can be given ARGV."""
    return len(argv) <= SLOTS + 1 and len(_texts(argv)) <= TEXTS


def fresh(pid: int) -> bool:
    """Whether the files that a loaded program is made of have not been replaced since."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return b" (deleted)\n" not in file.read()
    except OSError:
        return False


class Loaded:
    """Such a program.  It is to be used by the thread that made it, and dies with its process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._memory = -1
        self._entry = 0
        self._at_entry = Registers()
        self._code = b""
        self._environment: tuple[int, ...] = ()  # addresses of its strings, last the room
        self._brk = 0

    @classmethod
    def start(
        cls, path: str, name: str, env: Mapping[str, str], prepare: Callable[[], None]
    ) -> Self:
        """Execute PATH, to be called NAME, as far as its entry.

        prepare: called in the new process before.  Raises OSError; ValueError (a program of another
        kind); then nothing is left.
        """
        if platform.machine() != "x86_64":
            raise OSError(38, "programs are loaded ahead on x86_64 only")
        pid = os.fork()
        if pid == 0:
            _become(path, name, env, prepare)
        loaded = cls(pid)
        try:
            loaded._to_entry()
        except BaseException:
            loaded.kill()
            raise
        return loaded

    def _to_entry(self) -> None:
        self._await_stop()
        ptrace.set_options(self.pid, ptrace.EXITKILL)
        self._entry = _entry_of(self.pid)
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._code = self._read(self._entry, len(_PERFORM))
        self._write(self._entry, _BREAKPOINT)
        ptrace.proceed(self.pid)
        self._await_stop()
        self._write(self._entry, self._code)
        self._at_entry = ptrace.registers(self.pid)
        if self._at_entry.rip != self._entry + len(_BREAKPOINT):
            raise ValueError("it stopped elsewhere")
        self._at_entry.rip = self._entry
        self._environment = self._find_environment()
        start, end = _heap_of(self.pid)
        touch = Call("madvise", _MADVISE, (start, end - start, _MADV_POPULATE_WRITE), optional=True)
        self._brk, _ = self.perform([Call("brk", _BRK), touch], self._corner())
        name = self._word(self._at_entry.rsp + 8)
        end = name + self._read(name, 256).index(b"\0") + 1
        scratch = self._corner()
        self.perform([self._showing(name, end, scratch)], scratch)

    def _find_environment(self) -> tuple[int, ...]:
        """Return the addresses of the environment's strings."""
        rsp = self._at_entry.rsp
        if self._word(rsp) != SLOTS + 1:
            raise ValueError("its arguments are not where they should be")
        at, found = rsp + 8 * (SLOTS + 3), []
        while (address := self._word(at)) != 0:
            found.append(address)
            at += 8
        name = f"{_ROOM_NAME}=x".encode()
        if not found or self._read(found[-1], len(name)) != name:
            raise ValueError("its environment is not where it should be")
        return tuple(found)

    @property
    def room(self) -> int:
        """The address of the room."""
        return self._environment[-1]

    def scratch(self, argv: Sequence[str]) -> Scratch:
        """Return memory to be written for calls that are performed before it goes with ARGV."""
        return Scratch(self.room + -(-len(_texts(argv)) // 4096) * 4096)

    def perform(self, calls: Sequence[Call], scratch: Scratch) -> list[int]:
        """Have it do system calls and return their results; raises OSError for one that fails."""
        rows = [(each.number, *each.arguments, *[0] * 5)[:6] for each in calls]
        packed = b"".join(_ROW.pack(*(value & (1 << 64) - 1 for value in row)) for row in rows)
        table = scratch.put(packed)
        if table + len(packed) > self.room + ROOM - len(_ROOM_NAME):
            raise OSError(7, "too much to be done before it starts")
        self._write(scratch.address, bytes(scratch.data))
        self._write(self._entry, _PERFORM)
        wanted = self._at_entry.copy()
        wanted.rip, wanted.rbx, wanted.r12 = self._entry, table, len(calls)
        ptrace.set_registers(self.pid, wanted)
        ptrace.proceed(self.pid)
        self._await_stop()
        self._write(self._entry, self._code)
        read = self._read(table, len(packed))
        results = [struct.unpack_from("<q", read, at)[0] for at in range(0, len(packed), _ROW.size)]
        for call, result in zip(calls, results, strict=True):
            if result < 0 and not call.optional:
                raise OSError(-result, f"{call.name}: {os.strerror(-result)}")
        self._write(scratch.address, bytes(len(scratch.data)))
        return results

    def go(self, argv: Sequence[str]) -> None:
        """Let it run with ARGV; it is nobody's from now on.  Raises OSError."""
        texts = _texts(argv)
        self._write(self.room, texts)
        pointers, at = [], self.room
        for word in texts[:-1].split(b"\0"):
            pointers.append(at)
            at += len(word) + 1
        wanted = self._at_entry.copy()
        wanted.rsp += 8 * (SLOTS + 1 - len(pointers))
        vector = struct.pack(f"<{len(pointers) + 1}Q", len(pointers), *pointers)
        self._write(wanted.rsp, vector)
        environment = self._at_entry.rsp + 8 * (SLOTS + 3)
        self._write(environment + 8 * (len(self._environment) - 1), bytes(8))
        ptrace.set_registers(self.pid, wanted)
        ptrace.detach(self.pid)
        self._close()

    def showing(self, argv: Sequence[str], scratch: Scratch) -> Call:
        """Return the call by which /proc/PID/cmdline shows ARGV.

        A kernel without CONFIG_CHECKPOINT_RESTORE goes on showing the program's name.
        """
        return self._showing(self.room, self.room + len(_texts(argv)), scratch)

    def _showing(self, start: int, end: int, scratch: Scratch) -> Call:
        address = scratch.put(self._memory_map(start, end))
        words = (_PR_SET_MM, _PR_SET_MM_MAP, address, _MM_MAP.size)
        return Call("prctl", _PRCTL, words, optional=True)

    def _corner(self) -> Scratch:
        return Scratch(self.room + ROOM - _CORNER)

    def _memory_map(self, start: int, end: int) -> bytes:
        """Return a struct prctl_mm_map: what the process has, but for its arguments."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            text = file.read()
        # proc_pid_stat(5), from the 4th on
        fields = [int(word) for word in text[text.rindex(b")") + 4 :].split()]
        code, stack, data = fields[22:24], fields[24], fields[41:44]
        environment = (self._environment[0], self.room)
        no_file = 0xFFFFFFFF
        return _MM_MAP.pack(*code, *data, self._brk, stack, start, end, *environment, 0, 0, no_file)

    def kill(self) -> None:
        """End it, whatever it does; idempotent."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._close()

    def _close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _await_stop(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSTOPPED(status):
            raise OSError(3, "it ended")
        if os.WSTOPSIG(status) != signal.SIGTRAP:
            raise ValueError(f"it was stopped by signal {os.WSTOPSIG(status)}")

    def _read(self, address: int, size: int) -> bytes:
        return os.pread(self._memory, size, address)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._read(address, 8), "little")

    def _write(self, address: int, data: bytes) -> None:
        if os.pwrite(self._memory, data, address) != len(data):
            raise OSError(14, "its memory cannot be written")


def _become(path: str, name: str, env: Mapping[str, str], prepare: Callable[[], None]) -> None:
    """Become the program: what the new process does, which never returns."""
    try:
        prepare()
        ptrace.traceme()
        room = {_ROOM_NAME: "x" * (ROOM - len(_ROOM_NAME) - 1)}
        os.execve(path, [name] + [""] * SLOTS, {**env, **room})  # noqa: S606  a path, from us
    except BaseException:  # noqa: BLE001  it must not return into its parent's code
        os._exit(127)


def _entry_of(pid: int) -> int:
    """Return the address of the entry of a process's program."""
    with open(f"/proc/{pid}/auxv", "rb") as file:
        for kind, value in struct.iter_unpack("<QQ", file.read()):
            if kind == _AT_ENTRY:
                return int(value)
    raise ValueError("it has no entry")


def _heap_of(pid: int) -> tuple[int, int]:
    """Return where a process's heap begins and ends; 0 and 0 without one."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            if line.endswith(b"[heap]\n"):
                start, end = line.split(maxsplit=1)[0].split(b"-")
                return int(start, 16), int(end, 16)
    return 0, 0


def _texts(argv: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in argv)
