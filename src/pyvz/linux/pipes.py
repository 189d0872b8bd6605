"""How large a pipe may become: fs.pipe-max-size, which binds whoever lacks CAP_SYS_RESOURCE."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_LIMIT: Final = Path("/proc/sys/fs/pipe-max-size")
_STATUS: Final = Path("/proc/self/status")
_CAP_SYS_RESOURCE: Final = 24


def allow(size: int) -> None:
    """See to it that programs of ours can make pipes of SIZE bytes; raises OSError."""
    if _may_exceed() or int(_LIMIT.read_text()) >= size:
        return
    log.warning("fs.pipe-max-size is raised to %d: this system lacks CAP_SYS_RESOURCE", size)
    _LIMIT.write_text(str(size))


def _may_exceed() -> bool:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False
