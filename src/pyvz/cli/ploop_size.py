"""Sizes, paths and ids as ploop's command line has them."""

from __future__ import annotations

import os

from pyvz.errors import BadValue, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments

SECTOR = 512
_UNITS = {"": SECTOR, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, bare: str = "") -> int:
    """Return the bytes of a size; a bare number counts sectors (or `bare`, a suffix)."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, bare)
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS:
        raise BadValue(f"Invalid argument for option -s: {text}")
    size = int(number) * _UNITS[unit]
    if not 0 < size < 1 << 50:
        raise BadValue(f"{text} is no size of a disk")
    return size


def size_option(args: Arguments) -> int:
    """Return the bytes of -s; raises UsageError when it is missing."""
    text = args.value("s")
    if text is None:
        raise UsageError("A size is not specified (-s)")
    return parse_size(text)


def disk(args: Arguments, what: str = "A DiskDescriptor.xml") -> str:
    """Return the absolute path of the only operand."""
    return os.path.abspath(args.word(what))


def uuid(args: Arguments) -> str:
    """Return -u; raises UsageError when it is missing."""
    found = args.value("u")
    if found is None:
        raise UsageError("A snapshot is not specified (-u)")
    return found
