"""UEFI for guests: OVMF of the distribution, and each machine's own variables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Unsupported

# Debian's package ovmf; the 4M images are the ones that Debian 13 still has.
_PLACES = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)
VARIABLES = "NVRAM.dat"  # in the machine's home, as the original calls it


class Ovmf(NamedTuple):
    """The code, which machines share, and the empty variables, which each copies."""

    code: Path
    variables: Path


def find() -> Ovmf:
    """Return the firmware; raises Unsupported where the package is missing."""
    for code, variables in _PLACES:
        if Path(code).is_file() and Path(variables).is_file():
            return Ovmf(Path(code), Path(variables))
    raise Unsupported("There is no UEFI firmware on this node", hint="Install the package ovmf.")
