"""The machine types that QEMU on this node knows, asked once per program that is installed."""

from __future__ import annotations

import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pyvz.errors import CommandFailed
from pyvz.linux.run import ENVIRONMENT, run
from pyvz.vm.commandline import PROGRAM

# A line is a name, a text, and perhaps for what version the name is short, "(alias of pc-q35-7.2)".
_LINE = re.compile(r"^((?:pc|q35)\S*)\s.*?(?:\(alias of (\S+)\))?(?: \(default\))?$", re.MULTILINE)


class MachineType(NamedTuple):
    """A type.  alias: the type with a version that it is short for, or ""."""

    name: str
    alias: str


def known() -> tuple[MachineType, ...]:
    """Return the types of PCs, none without QEMU."""
    program = shutil.which(PROGRAM, path=ENVIRONMENT["PATH"])
    if program is None:
        return ()
    return _of(program, Path(program).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _of(program: str, _changed: int) -> tuple[MachineType, ...]:
    try:
        text = run([program, "-machine", "help"], timeout=30.0).stdout
    except CommandFailed:
        return ()
    return tuple(MachineType(name, alias) for name, alias in _LINE.findall(text))
