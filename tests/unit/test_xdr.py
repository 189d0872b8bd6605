"""The codec, and every row of the table against libvirt's own XDR functions."""

from __future__ import annotations

import ctypes
import ctypes.util
import random
import struct
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvz.gateway import procedures, xdr
from pyvz.gateway.frame import QEMU
from pyvz.gateway.procedures import EVENT, Procedure
from pyvz.gateway.xdr import BadData, Typed, codec, pack, structure, unpack

KINDS = {
    xdr.INT: "i", xdr.UINT: "u", xdr.LLONG: "h", xdr.ULLONG: "H", xdr.DOUBLE: "d",
    xdr.BOOLEAN: "b", xdr.STRING: "s",
}  # fmt: skip
ALL = sorted(procedures.by_number().values())


class Maker:
    """Makes random values of a type, as the letters say."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def value(self, kind: str) -> Any:
        if kind.startswith("?"):
            return self.value(kind[1:]) if self.chance.random() < 0.7 else None
        if kind.startswith("*"):
            return [self.value(kind[1:]) for _ in range(self.chance.randrange(4))]
        if kind.endswith("]"):
            inner, _, count = kind[:-1].rpartition("[")
            return [self.value(inner) for _ in range(int(count))]
        if kind in xdr.STRUCTURES:
            return self.fields(xdr.STRUCTURES[kind])
        return self._simple(kind)

    def fields(self, text: str) -> dict[str, Any]:
        words = [word.partition(":") for word in text.split()]
        return {field: self.value(kind) for field, _, kind in words}

    def _simple(self, kind: str) -> Any:
        match kind:
            case "typed_param":
                number = self.chance.choice(list(KINDS))
                return Typed(self.value("s"), number, self.value(KINDS[number]))
            case "s":
                return "".join(
                    self.chance.choice("aé☃ <&") for _ in range(self.chance.randrange(9))
                )
            case "y":
                return self.chance.randbytes(self.chance.randrange(9))
            case "uuid":
                return str(UUID(bytes=self.chance.randbytes(16)))
            case "b":
                return self.chance.random() < 0.5
            case "d":
                return self.chance.random()
            case "c":  # one byte in memory, with a sign or without
                return self.chance.randrange(128)
            case "w":
                return self.chance.randrange(1 << 16)
            case "i" | "h":
                bits = 31 if kind == "i" else 63
                return self.chance.randrange(-(2**bits), 2**bits)
        return self.chance.randrange(2 ** (32 if kind == "u" else 64))


class Library:
    """The XDR functions that libvirt's client library exports."""

    def __init__(self) -> None:
        self.virt = ctypes.CDLL("libvirt.so.0")
        self.rpc = ctypes.CDLL("libtirpc.so.3")

    def through(self, name: str, data: bytes) -> bytes:
        """Let the library decode DATA, all of it, and return what it encodes from that."""
        function = getattr(self.virt, name)
        memory = ctypes.create_string_buffer(1 << 16)
        stream = self._stream(data, 1)
        assert function(ctypes.byref(stream), memory) == 1, f"{name} does not take it"
        used = self._position(stream)
        assert used == len(data), f"{name} took {used} of {len(data)} bytes"
        out = ctypes.create_string_buffer(1 << 20)
        stream = self._stream(out, 0)
        assert function(ctypes.byref(stream), memory) == 1
        return out.raw[: self._position(stream)]

    def _stream(self, buffer: Any, operation: int) -> Any:
        stream = ctypes.create_string_buffer(128)
        size = len(buffer) if operation else ctypes.sizeof(buffer)
        self.rpc.xdrmem_create(ctypes.byref(stream), buffer, size, operation)
        self._keep = buffer
        return stream

    def _position(self, stream: Any) -> int:
        # struct XDR: x_op, then x_ops with x_getpostn as the sixth function (rpc/xdr.h).
        operations = struct.unpack_from("P", stream.raw, 8)[0]
        table = (ctypes.c_void_p * 8).from_address(operations)
        function = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p)(table[4])
        return int(function(ctypes.addressof(stream)))


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library()
    except OSError as error:
        pytest.skip(f"no client library of libvirt: {error}")


def rows(procedure: Procedure) -> list[tuple[str, str]]:
    """Return (name of the library's function, fields) of a procedure."""
    line = next(each for each in _joined() if each.split()[2] == procedure.name)
    head, _, results = line.partition("->")
    fields = " ".join(head.split()[3:])
    if procedure.right == EVENT:
        return [(f"xdr_remote_{procedure.name}_msg", fields)]
    found = [(f"xdr_remote_{procedure.name}_args", fields)] if fields else []
    return found + (
        [(f"xdr_remote_{procedure.name}_ret", results.strip())] if results.strip() else []
    )


def _joined() -> list[str]:
    text = (procedures.ROWS + procedures.QEMU_ROWS).replace("\n      ", " ")
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("procedure", ALL, ids=lambda each: each.name)
def test_every_row_is_what_the_client_library_says(library: Library, procedure: Procedure) -> None:
    for name, fields in rows(procedure):
        if not hasattr(library.virt, name):
            pytest.skip(f"this version of the library has no {name}")
        for seed in range(5):
            data = pack(structure(fields), Maker(seed).fields(fields))
            assert library.through(name, data) == data


def test_the_table_names_each_once() -> None:
    numbers = len(procedures.by_number()) + len(procedures.by_number(QEMU))
    assert numbers == len(procedures.by_name()) == len(_joined()) > 250


@pytest.mark.parametrize("procedure", ALL, ids=lambda each: each.name)
def test_what_was_packed_is_unpacked(procedure: Procedure) -> None:
    for name, fields in rows(procedure):
        value = Maker(hash(name)).fields(fields)
        assert unpack(structure(fields), pack(structure(fields), value)) == value


@given(st.binary(max_size=300), st.sampled_from(ALL))
def test_rubbish_is_refused_or_understood(data: bytes, procedure: Procedure) -> None:
    try:
        value = unpack(procedure.arguments, data)
    except BadData:
        return
    assert len(pack(procedure.arguments, value)) == len(data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("s", b"\xff\xff\xff\xff"),
        ("s", b"\0\0\0\5abc"),
        ("s", b"\0\0\0\1\xff\0\0\0"),
        ("s", b"\0\0\0\1\0\0\0\0"),
        ("*domain", b"\0\0\x40\1" + bytes(1 << 20)),
        ("*domain", b"\0\0\0\2" + bytes(24)),
        ("?s", b"\0\0\0\2"),
        ("typed_param", b"\0\0\0\1a\0\0\0\0\0\0\x09\0\0\0\0"),
        ("i", bytes(5)),
    ],
)
def test_impossible_values(kind: str, data: bytes) -> None:
    with pytest.raises(BadData):
        unpack(codec(kind), data)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("i", "text"), ("i", 2**31), ("u", -1), ("s", None), ("domain", {}), ("uuid", "x")],
)
def test_wrong_values_are_not_packed(kind: str, value: object) -> None:
    with pytest.raises(BadData):
        pack(codec(kind), value)
