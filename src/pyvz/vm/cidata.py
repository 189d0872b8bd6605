"""The volume in which cloud-init finds what it is told (data source NoCloud): ISO 9660 in memory,
labelled "cidata".

    /meta-data  /user-data  /network-config

The names are there by Joliet and by Rock Ridge, so that every guest sees them as they are.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Mapping
from typing import Final

LABEL: Final = "cidata"
_ROCK_RIDGE, _JOLIET, _LEVEL = "1.09", 3, 3
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def volume(files: Mapping[str, str]) -> bytes:
    """Return the volume that holds FILES (name: content)."""
    import pycdlib  # noqa: PLC0415  it takes as long as much of a start, and few machines need it

    made = io.BytesIO()
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=_LEVEL, vol_ident=LABEL, joliet=_JOLIET, rock_ridge=_ROCK_RIDGE)
    for name, text in files.items():
        data = text.encode()
        plain = name.upper().replace("-", "_")  # who knows neither extension
        disc.add_fp(
            io.BytesIO(data), len(data), f"/{plain};1", rr_name=name, joliet_path=f"/{name}"
        )
    disc.write_fp(made)
    disc.close()
    return made.getvalue()


def opened(data: bytes) -> int:
    """Return a descriptor of a file in memory that holds DATA, which nobody can change any more."""
    memory = os.memfd_create(LABEL, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        # QEMU opens a read-only image for reading, and takes only a descriptor that is open so.
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)
