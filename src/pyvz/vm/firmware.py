"""UEFI for guests: OVMF of the distribution, and each machine's own variables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pyvz.errors import Unsupported

# Debian's package ovmf; the 4M images are the ones that Debian 13 still has.  For secure boot: the
# build that keeps its variables from the guest, and variables with Microsoft's keys enrolled, by
# which Windows and the shim of every distribution are signed.
_PLACES = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)
_SECURE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"),
)
VARIABLES = "NVRAM.dat"  # in the machine's home, as the original calls it


class Ovmf(NamedTuple):
    """The code, which machines share, and the variables to begin with, which each copies."""

    code: Path
    variables: Path


def find(*, secure: bool = False) -> Ovmf:
    """Return the firmware; raises Unsupported where the package is missing."""
    for code, variables in _SECURE if secure else _PLACES:
        if Path(code).is_file() and Path(variables).is_file():
            return Ovmf(Path(code), Path(variables))
    what = "UEFI firmware for secure boot" if secure else "UEFI firmware"
    raise Unsupported(f"There is no {what} on this node", hint="Install the package ovmf.")
