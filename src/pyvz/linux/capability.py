"""What this process may do: its effective capabilities (capabilities(7))."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CAP_SYS_RESOURCE: Final = 24
_STATUS: Final = Path("/proc/thread-self/status")


def has(number: int) -> bool:
    """Whether this thread has the capability NUMBER."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
