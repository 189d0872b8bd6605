"""The eBPF device program, run by a small interpreter of the instructions that it uses."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pyvz.linux.deviceprogram import assemble
from pyvz.model.limits import DeviceRule

KINDS = {"b": 1, "c": 2}
BITS = {"m": 1, "r": 2, "w": 4}


def decide(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Run the program as the kernel would for one access (instruction-set.rst)."""
    wanted = sum(BITS[letter] for letter in access)
    context = struct.pack("<III", wanted << 16 | KINDS[kind], major, minor)
    registers: dict[int, int] = {}
    code = [struct.unpack_from("<BBhi", program, at) for at in range(0, len(program), 8)]
    at = 0
    while True:
        opcode, both, offset, immediate = code[at]
        target, source = both & 15, both >> 4
        at += 1
        if opcode == 0x61:
            assert source == 1
            assert 1 not in registers, "the context was overwritten before"
            registers[target] = struct.unpack_from("<I", context, offset)[0]
        elif opcode == 0xBC:
            registers[target] = registers[source]
        elif opcode == 0xB7:
            registers[target] = immediate
        elif opcode == 0x54:
            registers[target] &= immediate & 0xFFFFFFFF
        elif opcode == 0x74:
            registers[target] >>= immediate
        elif opcode == 0x55:
            if registers[target] != immediate:
                at += offset
        elif opcode == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(f"unknown opcode {opcode:#x}")


def expected(rules: list[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    joined: dict[tuple[object, ...], set[str]] = {}
    for rule in rules:
        joined.setdefault(rule[:3], set()).update(rule.access)
    return any(
        key[0] == kind
        and key[1] in (None, major)
        and key[2] in (None, minor)
        and set(access) <= letters
        for key, letters in joined.items()
    )


kinds = st.sampled_from("bc")
accesses = st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"])
numbers = st.sampled_from([0, 1, 5, 136, 1048575])
rules = st.lists(
    st.builds(DeviceRule, kinds, st.none() | numbers, st.none() | numbers, accesses), max_size=8
)


@given(rules, kinds, numbers, numbers, accesses)
def test_program_decides_as_the_rules_say(given_rules, kind, major, minor, access):
    program = assemble(given_rules)
    assert decide(program, kind, major, minor, access) == expected(
        given_rules, kind, major, minor, access
    )


def test_empty_list_denies():
    assert not decide(assemble(()), "c", 1, 3, "r")


def test_known_bytes():
    program = assemble([DeviceRule.parse("c 1:3 rwm")])
    lines = [program[at : at + 8].hex() for at in range(0, len(program), 8)]
    assert lines == [
        "6112000000000000",  # r2 = *(u32 *)(r1 + 0)
        "6114040000000000",  # r4 = *(u32 *)(r1 + 4)
        "6115080000000000",  # r5 = *(u32 *)(r1 + 8)
        "bc23000000000000",  # w3 = w2
        "54020000ffff0000",  # w2 &= 0xffff
        "7403000010000000",  # w3 >>= 16
        "5502040002000000",  # if r2 != 2 goto +4
        "5504030001000000",  # if r4 != 1 goto +3
        "5505020003000000",  # if r5 != 3 goto +2
        "b700000001000000",  # r0 = 1
        "9500000000000000",  # exit
        "b700000000000000",  # r0 = 0
        "9500000000000000",  # exit
    ]
