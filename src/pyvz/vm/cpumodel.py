"""The models of processors that QEMU on this node knows, asked once per installed program."""

from __future__ import annotations

import re
import shutil
from functools import lru_cache
from pathlib import Path

from pyvz.errors import CommandFailed
from pyvz.linux.run import ENVIRONMENT, run
from pyvz.vm.commandline import PROGRAM

_LINE = re.compile(r"^x86 (\S+)", re.MULTILINE)
_NOT_NAMED = frozenset({"base", "host", "max"})  # what is taken when no model is named


def known() -> tuple[str, ...]:
    """Return the names, none without QEMU."""
    program = shutil.which(PROGRAM, path=ENVIRONMENT["PATH"])
    if program is None:
        return ()
    return _of(program, Path(program).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _of(program: str, _changed: int) -> tuple[str, ...]:
    try:
        text = run([program, "-cpu", "help"], timeout=30.0).stdout
    except CommandFailed:
        return ()
    return tuple(name for name in _LINE.findall(text) if name not in _NOT_NAMED)
