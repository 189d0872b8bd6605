"""The device rules of a container on cgroup v2: a small eBPF program that we assemble ourselves.

v2 has no devices files; instead a program of type BPF_PROG_TYPE_CGROUP_DEVICE answers 1 (allowed)
or 0 for every open and mknod.  `assemble` is a pure function from rules to instructions, `attach`
puts the result on a cgroup, taking the place of the former one without a gap.

Source: include/uapi/linux/bpf.h, kernel/bpf/cgroup.c, Documentation/bpf/standardization/
instruction-set.rst
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from pyvz.errors import Unsupported
from pyvz.linux import syscall
from pyvz.model.limits import DeviceRule, canonical_access

# opcodes: class, source (K an immediate, X a register) and operation
_LOAD_WORD = 0x61  # dst = *(u32 *)(src + off)
_MOV32_REG = 0xBC
_MOV64_IMM = 0xB7
_AND32_IMM = 0x54
_RSH32_IMM = 0x74
_JNE_IMM = 0x55  # if dst != imm: skip off instructions
_EXIT = 0x95

# registers: 0 the answer, 1 the context and then scratch
_ANSWER, _SCRATCH, _KIND, _ACCESS, _MAJOR, _MINOR = range(6)

# struct bpf_cgroup_dev_ctx: access_type (access << 16 | kind), major, minor
_KINDS = {"b": 1, "c": 2}
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_ALL_ACCESS = 7

_PROG_TYPE_CGROUP_DEVICE = 15
_ATTACH_TYPE_CGROUP_DEVICE = 6
_ALLOW_MULTI = 1 << 1
_REPLACE = 1 << 2
_MAX_PROGRAMS = 64


def merge(rules: Sequence[DeviceRule]) -> list[DeviceRule]:
    """Return the rules with one entry per device, its accesses joined (as v1 does it itself)."""
    accesses: dict[tuple[str, int | None, int | None], str] = {}
    for kind, major, minor, access in rules:
        key = (kind, major, minor)
        accesses[key] = canonical_access(accesses.get(key, "") + access)
    return [DeviceRule(*key, access) for key, access in accesses.items()]


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """Return the program that allows exactly RULES, as 8-byte instructions."""
    code = [
        _instruction(_LOAD_WORD, _KIND, source=1, offset=0),
        _instruction(_LOAD_WORD, _MAJOR, source=1, offset=4),
        _instruction(_LOAD_WORD, _MINOR, source=1, offset=8),
        _instruction(_MOV32_REG, _ACCESS, source=_KIND),
        _instruction(_AND32_IMM, _KIND, immediate=0xFFFF),
        _instruction(_RSH32_IMM, _ACCESS, immediate=16),
    ]
    for rule in merge(rules):
        code += _allow(rule)
    code += _answer(allowed=False)
    return b"".join(code)


def _allow(rule: DeviceRule) -> list[bytes]:
    """Return the block for one rule: tests that jump behind it, then "allowed"."""
    mask = sum(_ACCESS_BITS[letter] for letter in rule.access)
    # A test is a list of instructions of which the last one jumps away when it fails.
    tests: list[tuple[list[bytes], int, int]] = [([], _KIND, _KINDS[rule.kind])]
    if mask != _ALL_ACCESS:
        # Every wanted access must be among the allowed: wanted & ~allowed is 0.
        prepare = [
            _instruction(_MOV32_REG, _SCRATCH, source=_ACCESS),
            _instruction(_AND32_IMM, _SCRATCH, immediate=_ALL_ACCESS & ~mask),
        ]
        tests.append((prepare, _SCRATCH, 0))
    if rule.major is not None:
        tests.append(([], _MAJOR, rule.major))
    if rule.minor is not None:
        tests.append(([], _MINOR, rule.minor))
    block = _answer(allowed=True)
    for prepare, register, wanted in reversed(tests):
        jump = _instruction(_JNE_IMM, register, offset=len(block), immediate=wanted)
        block = [*prepare, jump, *block]
    return block


def _answer(*, allowed: bool) -> list[bytes]:
    return [_instruction(_MOV64_IMM, _ANSWER, immediate=int(allowed)), _instruction(_EXIT, 0)]


def _instruction(
    opcode: int, target: int, *, source: int = 0, offset: int = 0, immediate: int = 0
) -> bytes:
    # struct bpf_insn: the registers are two nibbles, the target in the low one (little endian)
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, immediate)


def load(program: bytes) -> int:
    """Give PROGRAM to the kernel and return its descriptor.  Raises Unsupported."""
    code, licence = syscall.data_buffer(program), syscall.data_buffer(b"GPL\0")
    attr = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // 8,
        syscall.address_of(code),
        syscall.address_of(licence),
        *(0, 0, 0),  # no verifier log
        *(0, 0),  # kernel version and flags: not for this type
        b"pyvz_devices",
    )
    try:
        return syscall.bpf(syscall.BPF_PROG_LOAD, attr)[0]
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EACCES):
            raise Unsupported(
                "the kernel takes no eBPF device program for the container",
                details=os.strerror(error.errno),
                hint="It needs CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and full root.",
            ) from error
        raise


def attach(directory: str, rules: Sequence[DeviceRule]) -> None:
    """Allow exactly RULES in the cgroup DIRECTORY, at once.

    With BPF_F_ALLOW_MULTI the programs of all cgroups above are asked as well; BPF_F_REPLACE
    (Linux 5.6) changes ours without a moment in which nothing or both would hold.
    """
    program = load(assemble(rules))
    try:
        target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _put(target, program)
        finally:
            os.close(target)
    finally:
        os.close(program)


def _put(target: int, program: int) -> None:
    former = [_program_fd(number) for number in _attached(target)]
    try:
        flags, replaced = _ALLOW_MULTI, 0
        if former:
            flags, replaced = _ALLOW_MULTI | _REPLACE, former[0]
        _attach(target, program, flags, replaced)
        for extra in former[1:]:
            attr = struct.pack("=IIIII", target, extra, _ATTACH_TYPE_CGROUP_DEVICE, 0, 0)
            syscall.bpf(syscall.BPF_PROG_DETACH, attr)
    finally:
        for fd in former:
            os.close(fd)


def _attach(target: int, program: int, flags: int, replaced: int) -> None:
    attr = struct.pack("=IIIII", target, program, _ATTACH_TYPE_CGROUP_DEVICE, flags, replaced)
    syscall.bpf(syscall.BPF_PROG_ATTACH, attr)


def attached(directory: str) -> list[int]:
    """Return the ids of the device programs on the cgroup DIRECTORY itself."""
    target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _attached(target)
    finally:
        os.close(target)


def _attached(target: int) -> list[int]:
    numbers = syscall.data_buffer(bytes(4 * _MAX_PROGRAMS))
    attr = struct.pack(
        "=IIIIQI4x",
        target,
        _ATTACH_TYPE_CGROUP_DEVICE,
        *(0, 0),  # query flags; attach flags (an answer)
        syscall.address_of(numbers),
        _MAX_PROGRAMS,
    )
    _, answer = syscall.bpf(syscall.BPF_PROG_QUERY, attr)
    (count,) = struct.unpack_from("=I", answer, 24)
    return list(struct.unpack_from(f"={count}I", numbers.raw))


def _program_fd(number: int) -> int:
    return syscall.bpf(syscall.BPF_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))[0]
