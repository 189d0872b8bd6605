"""XDR (RFC 4506) as libvirt's RPC uses it: types written in letters, compiled into two functions.

    i u h H      int32, uint32, int64, uint64          s   string (UTF-8)
    d b c w      double, bool, char, short (4 bytes,   y   opaque bytes
                 but the double)                       uuid  16 fixed bytes, here a text
    ?T           optional: None or a value             *T  a list
    T[n]         n values                              name  a structure of STRUCTURES

A structure is a dict here, by the names of its fields.  What comes in is never trusted: every
length is checked against a limit and against what is there before anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

STRING_LIMIT: Final = 4 << 20  # bytes; also of opaque values (cookies)
LIST_LIMIT: Final = 16384  # elements

# name -> "field:type field:type"; a domain's id is -1 when it does not run.
STRUCTURES: Final[Mapping[str, str]] = {
    "domain": "name:s uuid:uuid id:i",
    "network": "name:s uuid:uuid",
    "storage_pool": "name:s uuid:uuid",
    "nwfilter": "name:s uuid:uuid",
    "storage_vol": "pool:s name:s key:s",
    "interface": "name:s mac:s",
    "node_device": "name:s",
    "secret": "uuid:uuid usageType:i usageID:s",
    "domain_snapshot": "name:s dom:domain",
    "domain_checkpoint": "name:s dom:domain",
    "nwfilter_binding": "portdev:s filtername:s",
    "network_port": "net:network uuid:uuid",
    "network_dhcp_lease": "iface:s expirytime:h type:i mac:?s iaid:?s ipaddr:s prefix:u"
    " hostname:?s clientid:?s",
    "error": "code:i domain:i message:?s level:i dom:?domain str1:?s str2:?s str3:?s"
    " int1:i int2:i net:?network",
    "vcpu_info": "number:u state:i cpu_time:H cpu:i",
    "domain_memory_stat": "tag:i val:H",
    "node_stat": "field:s value:H",
    "iothread_info": "iothread_id:u cpumap:y",
    "domain_disk_error": "disk:s error:i",
    "domain_stats_record": "dom:domain params:*typed_param",
    "domain_fsinfo": "mountpoint:s name:s fstype:s dev_aliases:*s",
    "domain_ip_addr": "type:i addr:s prefix:u",
    "domain_interface": "name:s hwaddr:?s addrs:*domain_ip_addr",
    "stream_hole": "length:h flags:u",
    # Bodies of the older event messages.
    "lifecycle_event": "dom:domain event:i detail:i",
    "domain_event": "dom:domain",
    "balloon_event": "dom:domain actual:H",
    "device_event": "dom:domain devAlias:s",
    "tray_event": "dom:domain devAlias:s reason:i",
    "block_job_event": "dom:domain path:s type:i status:i",
}


_WORD: Final = struct.Struct(">I")


class BadData(Exception):
    """Bytes that are no value of the type, or a value that does not fit it."""


class Packed(bytes):
    """A structure that was packed before, in place of its values."""

    __slots__ = ()


class Typed(NamedTuple):
    """A typed parameter: kind is one of the numbers below."""

    field: str
    kind: int
    value: int | float | str


INT, UINT, LLONG, ULLONG, DOUBLE, BOOLEAN, STRING = range(1, 8)


class Reader:
    """Takes values from the front of a message."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """Take COUNT bytes; raises BadData when there are fewer."""
        if count > self.left:
            raise BadData("the message ends too early")
        self._at += count
        return self._data[self._at - count : self._at]


Encode = Callable[[bytearray, Any], None]
Decode = Callable[[Reader], Any]


class Codec(NamedTuple):
    """How values of one type are written and read.  smallest: bytes that a value takes at least."""

    encode: Encode
    decode: Decode
    smallest: int


@cache
def codec(name: str) -> Codec:
    """Return the codec of the type NAME; KeyError for a type that does not exist."""
    if name.startswith("?"):
        return _optional(codec(name[1:]))
    if name.startswith("*"):
        return _list(codec(name[1:]))
    if name.endswith("]"):
        inner, _, count = name[:-1].rpartition("[")
        return _array(codec(inner), int(count))
    if name in _SIMPLE:
        return _SIMPLE[name]
    return structure(STRUCTURES[name])


@cache
def structure(fields: str) -> Codec:
    """Return the codec of a structure with the given fields ("name:type name:type")."""
    words = [word.partition(":") for word in fields.split()]
    parts = [(field, codec(kind)) for field, _, kind in words]

    encoders = [(field, part.encode) for field, part in parts]
    decoders = [(field, part.decode) for field, part in parts]

    def encode(out: bytearray, value: Mapping[str, Any] | Packed) -> None:
        if isinstance(value, Packed):
            out += value
            return
        for field, part in encoders:
            part(out, value[field])

    def decode(reader: Reader) -> dict[str, Any]:
        return {field: part(reader) for field, part in decoders}

    return Codec(encode, decode, sum(part.smallest for _, part in parts))


def pack(kind: Codec, value: object) -> bytes:
    """Return VALUE as bytes; raises BadData when it is no value of that type."""
    out = bytearray()
    try:
        kind.encode(out, value)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise BadData(f"{error!r} in {value!r}") from error
    return bytes(out)


def unpack(kind: Codec, data: bytes | memoryview) -> Any:  # noqa: ANN401  # what the type says
    """Return the value of which DATA consists, to the last byte; raises BadData."""
    reader = Reader(data)
    value = kind.decode(reader)
    if reader.left:
        raise BadData(f"{reader.left} bytes too many")
    return value


def _number(form: str) -> Codec:
    packer = struct.Struct(">" + form)

    def encode(out: bytearray, value: float) -> None:
        out += packer.pack(value)

    def decode(reader: Reader) -> Any:  # noqa: ANN401  # int or float
        return packer.unpack(reader.take(packer.size))[0]

    return Codec(encode, decode, packer.size)


def _bytes(out: bytearray, value: bytes) -> None:
    if len(value) > STRING_LIMIT:
        raise BadData(f"{len(value)} bytes are too many for one value")
    out += _WORD.pack(len(value))
    out += value
    out += bytes(-len(value) % 4)


def _read_bytes(reader: Reader) -> bytes:
    length = _WORD.unpack(reader.take(4))[0]
    if length > STRING_LIMIT:
        raise BadData(f"a value of {length} bytes is too long")
    data = bytes(reader.take(length))
    reader.take(-length % 4)
    return data


def _write_text(out: bytearray, value: str) -> None:
    _bytes(out, value.encode())


def _read_text(reader: Reader) -> str:
    data = _read_bytes(reader)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadData("a text is not UTF-8") from error
    if "\0" in text:
        raise BadData("a text has a null byte in it")
    return text


def _write_bool(out: bytearray, value: object) -> None:
    out += b"\0\0\0\1" if value else b"\0\0\0\0"


def _read_bool(reader: Reader) -> bool:
    value = bytes(reader.take(4))
    if value not in (b"\0\0\0\0", b"\0\0\0\1"):
        raise BadData("a truth value is neither 0 nor 1")
    return value == b"\0\0\0\1"


def _write_uuid(out: bytearray, value: str) -> None:
    data = bytes.fromhex(value.replace("-", ""))
    if len(data) != 16:
        raise BadData(f"'{value}' is no UUID")
    out += data


def _read_uuid(reader: Reader) -> str:
    digits = reader.take(16).hex()
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts)


def _optional(inner: Codec) -> Codec:
    def encode(out: bytearray, value: object) -> None:
        _write_bool(out, value is not None)
        if value is not None:
            inner.encode(out, value)

    def decode(reader: Reader) -> Any:  # noqa: ANN401
        return inner.decode(reader) if _read_bool(reader) else None

    return Codec(encode, decode, 4)


def _list(inner: Codec) -> Codec:
    def encode(out: bytearray, value: list[Any]) -> None:
        if len(value) > LIST_LIMIT:
            raise BadData(f"{len(value)} elements are too many for one list")
        out += _WORD.pack(len(value))
        for each in value:
            inner.encode(out, each)

    def decode(reader: Reader) -> list[Any]:
        count = _WORD.unpack(reader.take(4))[0]
        if count > LIST_LIMIT or count * inner.smallest > reader.left:
            raise BadData(f"a list of {count} elements is too long")
        return [inner.decode(reader) for _ in range(count)]

    return Codec(encode, decode, 4)


def _array(inner: Codec, count: int) -> Codec:
    def encode(out: bytearray, value: list[Any]) -> None:
        if len(value) != count:
            raise BadData(f"{len(value)} elements in place of {count}")
        for each in value:
            inner.encode(out, each)

    def decode(reader: Reader) -> list[Any]:
        return [inner.decode(reader) for _ in range(count)]

    return Codec(encode, decode, count * inner.smallest)


@lru_cache(4096)
def _typed_head(field: str, kind: int) -> bytes:
    """Return name and kind of a parameter as bytes: the same few in every answer."""
    out = bytearray()
    _write_text(out, field)
    return bytes(out + _WORD.pack(kind))


def _write_typed(out: bytearray, value: Typed) -> None:
    field, kind, content = value
    out += _typed_head(field, kind)
    _SIMPLE[_KINDS[kind]].encode(out, content)


def _read_typed(reader: Reader) -> Typed:
    field = _read_text(reader)
    kind = struct.unpack(">i", reader.take(4))[0]
    if kind not in _KINDS:
        raise BadData(f"a parameter is of the unknown kind {kind}")
    return Typed(field, kind, _SIMPLE[_KINDS[kind]].decode(reader))


_KINDS: Final = {
    INT: "i", UINT: "u", LLONG: "h", ULLONG: "H", DOUBLE: "d", BOOLEAN: "i", STRING: "s",
}  # fmt: skip
_SIMPLE: Final[Mapping[str, Codec]] = {
    "i": _number("i"),
    "u": _number("I"),
    "h": _number("q"),
    "H": _number("Q"),
    "d": _number("d"),
    "c": _number("i"),
    "w": _number("I"),
    "b": Codec(_write_bool, _read_bool, 4),
    "s": Codec(_write_text, _read_text, 4),
    "y": Codec(_bytes, _read_bytes, 4),
    "uuid": Codec(_write_uuid, _read_uuid, 16),
    "typed_param": Codec(_write_typed, _read_typed, 12),
}
