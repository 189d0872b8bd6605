"""The log of a virtual machine: what QEMU has said, and what it means when it does not start."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvz.errors import Busy, NotEnoughResources, StartError, Unsupported, VZError
from pyvz.vm.image import WRONG_KEY

MAX_LOG = 1 << 20  # bytes of an old log that are kept at a start


@contextmanager
def appended(path: Path) -> Iterator[int]:
    """Open the machine's log for appending; an old one that has grown large begins anew."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG:
            path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"-- {time.strftime('%F %T')} start\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def start_error(path: Path, memory: int) -> VZError:
    """Return the error that QEMU's own words make.  memory: of the machine, in MiB."""
    try:
        text = path.read_text(errors="replace").rpartition(" start\n")[2].strip()
    except OSError:
        text = ""
    if "No such file or directory: qemu" in text or text.startswith("pyvz: No such file"):
        return Unsupported(
            "QEMU is not installed on this node",
            hint="Install it with: script/bootstrap --vm (package qemu-system-x86)",
        )
    if 'Failed to get "' in text and "lock" in text:
        return Busy("An image of the virtual machine is in use by another program", details=text)
    if WRONG_KEY in text:
        return StartError("The key of an encrypted disk does not open it", details=text[-500:])
    if "cannot set up guest memory" in text:
        wanted = f"{memory} MiB of memory"
        return NotEnoughResources(f"This node does not have the {wanted}", details=text[-500:])
    last = "\n".join(text.splitlines()[-10:])
    return StartError("QEMU did not start", details=last or "It said nothing.")
