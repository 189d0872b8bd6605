"""The machine types that QEMU on this node knows."""

from __future__ import annotations

import re
from typing import NamedTuple

from pyvz.vm import helptext

# A line is a name, a text, and perhaps for what version the name is short, "(alias of pc-q35-7.2)".
_LINE = re.compile(r"^((?:pc|q35)\S*)\s.*?(?:\(alias of (\S+)\))?(?: \(default\))?$", re.MULTILINE)


class MachineType(NamedTuple):
    """A type.  alias: the type with a version that it is short for, or ""."""

    name: str
    alias: str


def known() -> tuple[MachineType, ...]:
    """Return the types of PCs, none without QEMU."""
    return tuple(MachineType(*found) for found in _LINE.findall(helptext.of("-machine")))
