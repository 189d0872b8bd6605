"""What of inotify(7) all containers have together.

What a user namespace takes is counted for the user who made it as well, at every level up to the
node's own (kernel/ucount.c), and for us that is root.  So the node's limits are those of the sum:
by default 128 instances, which some ten guests with systemd use up.  Then units fail inside, and
CRIU cannot even begin ("Can't create inotify: Too many open files").
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

# An instance that nobody uses costs nothing; a watch in use pins an inode, about 1 KiB.
ENOUGH: Final = {"max_user_instances": 65536, "max_user_watches": 1048576}
_PARAMETERS: Final = Path("/proc/sys/fs/inotify")


def widen(parameters: Path = _PARAMETERS) -> None:
    """Raise the node's limits to what many containers need; never lower them.

    A node on which they cannot be set keeps what it has.
    """
    for name, wanted in ENOUGH.items():
        path = parameters / name
        try:
            found = int(path.read_text())
            if found < wanted:
                path.write_text(str(wanted))
                log.info("fs.inotify.%s raised from %d to %d", name, found, wanted)
        except (OSError, ValueError) as error:
            log.warning("fs.inotify.%s cannot be raised: %s", name, error)
