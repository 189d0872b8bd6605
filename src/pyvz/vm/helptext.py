"""What QEMU on this node says of itself, asked once per installed program."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

from pyvz.errors import CommandFailed
from pyvz.linux.run import ENVIRONMENT, run
from pyvz.vm.commandline import PROGRAM


def of(option: str) -> str:
    """Return what QEMU says to `OPTION help`; "" without QEMU, or when it fails."""
    return _said(option, "help")


def version() -> str:
    """Return what QEMU says to `--version`; "" without QEMU, or when it fails."""
    return _said("--version")


def _said(*words: str) -> str:
    program = shutil.which(PROGRAM, path=ENVIRONMENT["PATH"])
    if program is None:
        return ""
    return _asked(program, Path(program).stat().st_mtime_ns, words)


@lru_cache(maxsize=4)
def _asked(program: str, _changed: int, words: tuple[str, ...]) -> str:
    try:
        return run([program, *words], timeout=30.0).stdout
    except CommandFailed:
        return ""
