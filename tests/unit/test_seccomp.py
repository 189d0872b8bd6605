"""The seccomp program, run through a small interpreter of classic BPF."""

from __future__ import annotations

import struct

import pytest

from pyvz.container import seccomp
from pyvz.linux import syscall

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
CLONE, UNSHARE, CLONE3, BPF, KEXEC, READ, KEYCTL = 56, 272, 435, 321, 246, 0, 250

pytest.importorskip("pyseccomp")
pytestmark = pytest.mark.skipif("__import__('os').uname().machine != 'x86_64'")


def run(
    program: bytes,
    number: int,
    argument: int = 0,
    arch: int = X86_64,
    more: tuple[int, int] = (0, 0),
) -> int:
    data = struct.pack("=iIQ6Q", number, arch, 0, argument, *more, 0, 0, 0)
    code = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    for _ in range(len(code)):
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif op == 0x54:
            value &= k
        elif op == 0x05:
            at += k
        elif op == 0x06:
            return k
        else:
            taken = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: value & k}[op]
            at += yes if taken else no
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("nesting", [False, True])
@pytest.mark.parametrize("number", [BPF, KEXEC, KEYCTL, 175, 304, 323])
def test_denied(number: int, nesting: bool) -> None:
    assert run(seccomp.program(nesting=nesting), number) == EPERM


@pytest.mark.parametrize("command", [0x5000940E, 0x50009401, 0x50009418, 0x50009417])
def test_subvolumes_are_not_known(command: int) -> None:
    program = seccomp.program()
    for high in (0, 1 << 32):  # the kernel does not look at those bits
        assert run(program, 16, more=(command | high, 0)) == 0x00050019  # ENOTTY
    assert run(program, 16, more=(0x5401, 0)) == ALLOW


def test_usual_calls_pass() -> None:
    program = seccomp.program()
    for number in (READ, 1, 2, 59, 165, 166, 157, 126, 41, 308):
        assert run(program, number) == ALLOW
    assert run(program, CLONE, 0x01200011) == ALLOW  # fork of glibc
    assert run(program, CLONE, syscall.CLONE_NEWNS) == ALLOW
    assert run(program, UNSHARE, syscall.CLONE_NEWNET | syscall.CLONE_NEWCGROUP) == ALLOW


@pytest.mark.parametrize(
    "flag",
    [syscall.CLONE_NEWUTS, syscall.CLONE_NEWIPC, syscall.CLONE_NEWUSER, syscall.CLONE_NEWPID],
)
def test_nested_namespaces(flag: int) -> None:
    strict, nesting = seccomp.program(), seccomp.program(nesting=True)
    for number in (CLONE, UNSHARE):
        assert run(strict, number, flag) == EPERM
        assert run(strict, number, flag | syscall.CLONE_NEWNS | 17) == EPERM
        assert run(nesting, number, flag) == ALLOW
    assert run(strict, CLONE3) == ENOSYS
    assert run(nesting, CLONE3) == ALLOW
    assert run(strict, UNSHARE, syscall.CLONE_NEWTIME) == EPERM


def test_32_bit_programs_have_the_same_rules() -> None:
    program = seccomp.program()
    assert run(program, 3, arch=I386) == ALLOW  # read
    assert run(program, 357, arch=I386) == EPERM  # bpf
    assert run(program, 120, syscall.CLONE_NEWUSER, arch=I386) == EPERM  # clone
    assert run(program, 435, arch=I386) == ENOSYS
    assert run(program, 283, arch=I386) == EPERM  # kexec_load


def test_other_abis_are_refused() -> None:
    program = seccomp.program()
    assert run(program, 0x40000000 + READ) == ENOSYS  # x32
    assert run(program, 0, arch=0xC00000B7) == ENOSYS  # aarch64


def test_netfilter() -> None:
    socket, setsockopt = 41, 54
    closed, free = seccomp.program(netfilter=False), seccomp.program()
    for number, first, more in (
        (socket, 16, (3, 12)),
        (setsockopt, 5, (0, 64)),
        (setsockopt, 5, (41, 64)),
    ):
        assert run(closed, number, first, more=more) == EPERM
        assert run(free, number, first, more=more) == ALLOW
    assert run(closed, socket, 16, more=(3, 0)) == ALLOW  # rtnetlink: addresses and routes
    assert run(closed, socket, 2, more=(1, 12)) == ALLOW
    assert run(closed, setsockopt, 5, more=(1, 64)) == ALLOW
