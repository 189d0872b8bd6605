"""How large a pipe may become: fs.pipe-max-size, which binds whoever lacks CAP_SYS_RESOURCE."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from pyvz.linux import capability

log = logging.getLogger(__name__)

_LIMIT: Final = Path("/proc/sys/fs/pipe-max-size")


def allow(size: int) -> None:
    """See to it that programs of ours can make pipes of SIZE bytes; raises OSError."""
    if capability.has(capability.CAP_SYS_RESOURCE) or int(_LIMIT.read_text()) >= size:
        return
    log.warning("fs.pipe-max-size is raised to %d: this system lacks CAP_SYS_RESOURCE", size)
    _LIMIT.write_text(str(size))
