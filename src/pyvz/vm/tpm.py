"""A TPM for a guest: swtpm of the distribution, one process for each machine.

QEMU talks to it over a pair of sockets that it is given, so it listens nowhere.  It sees one
directory, by a descriptor, runs as the machine's user in the machine's control groups, and ends
when QEMU has gone.  When it dies before, the guest's TPM fails, and the guest runs on.
"""

from __future__ import annotations

import shutil
from typing import Final, NamedTuple

from pyvz.errors import Unsupported
from pyvz.linux.run import ENVIRONMENT

PROGRAM: Final = "swtpm"
DIRECTORY: Final = "tpm"  # in the machine's home
STATE: Final = "tpm2-00.permall"  # in that directory: what the TPM knows for ever, by swtpm's name


class Companion(NamedTuple):
    """A program that runs beside QEMU, as confined as it is.  descriptors: that it keeps."""

    argv: tuple[str, ...]
    descriptors: tuple[int, ...]


def check() -> None:
    """Raise Unsupported where the package is missing."""
    if shutil.which(PROGRAM, path=ENVIRONMENT["PATH"]) is None:
        raise Unsupported(
            "There is no swtpm on this node, which a virtual machine with a TPM needs",
            hint="Install the package swtpm, or: prlctl set ID --tpm off",
        )


def companion(directory: int, way: int) -> Companion:
    """Return the TPM whose state is in DIRECTORY and that is spoken to by WAY, descriptors both."""
    argv = (
        *(PROGRAM, "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir=/proc/self/fd/{directory},mode=0600"),
        *("--ctrl", f"type=unixio,clientfd={way}"),
    )
    return Companion(argv, (directory, way))
