"""A file system of a container's own mounted with or without the quota of its users.

None asked for is taken away, so that the image mounts on a kernel without it, too; a kernel that
has none does not keep a container from starting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pyvz.errors import CommandFailed, MountError
from pyvz.linux import userquota
from pyvz.storage.base import MountOptions

log = logging.getLogger(__name__)


def mounted(
    image: Path,
    device: tuple[Path, str],
    options: MountOptions,
    mount: Callable[[tuple[str, ...]], int],
) -> int:
    """Have `mount(words)` mount the device (its path, its kind) as `options` say.

    Returns the descriptor of the detached mount.  image: for the log.  Raises MountError.
    """
    path, kind = device
    if options.quota:
        try:
            userquota.prepare(path, kind, on=True)
            return mount((*options.words, *userquota.mount_options(kind)))
        except (MountError, CommandFailed) as error:
            log.warning("%s: no quota of users: %s", image, error)
    if options.quota is not None:
        userquota.prepare(path, kind, on=False)
    return mount(options.words)
