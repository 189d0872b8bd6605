"""Names of disks that lie side by side in one home, and of what is left of making them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pyvz.errors import BadValue

LEFTOVERS: Final = (".new", ".gone")  # being made; being removed


def checked(disk: str) -> str:
    """Return `disk` when it can be the name of a disk's directory; raises BadValue."""
    if not disk or "/" in disk or disk.startswith(".") or is_leftover(disk):
        raise BadValue(f"'{disk}' cannot be the name of a disk")
    return disk


def is_leftover(name: str) -> bool:
    """Whether a name in a home is that of an unfinished step."""
    return name.endswith(LEFTOVERS)


def candidates(home: Path) -> list[str]:
    """Return the names in a home that disks may have; none when it is not there."""
    if not home.is_dir():
        return []
    return [entry.name for entry in os.scandir(home) if not is_leftover(entry.name)]
