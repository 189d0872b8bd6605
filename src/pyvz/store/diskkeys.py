"""The node's keys of encrypted disks.

<etc>/keys/<id>     the passphrase, in one line; of root and for root only

They are the administrator's: made, kept safe and removed by hand.
"""

from __future__ import annotations

import os
import stat

from pyvz.errors import ConfigError, NotFound
from pyvz.model.secret import Secret
from pyvz.store.paths import Paths

MAX = 4096  # bytes


def read(paths: Paths, ident: str) -> Secret:
    """Return the key of that id (checked before to be a plain name).

    Raises NotFound, ConfigError (others may read it, it is empty or too long).
    """
    path = paths.etc / "keys" / ident
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(
            f"There is no key '{ident}' on this node ({error.strerror})",
            hint=f"It is a passphrase in one line, in {path}, with mode 0600.",
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid or status.st_mode & 0o077:
            raise ConfigError(
                f"{path} is not a file that only root can read: the key is not used",
                hint=f"chown root {path}; chmod 600 {path}",
            )
        data = file.read(MAX + 1)
    text = data.removesuffix(b"\n")
    if not text or len(data) > MAX or b"\0" in text:
        raise ConfigError(f"{path} holds no passphrase: one line of at most {MAX} bytes")
    return Secret(text.decode("utf-8", "surrogateescape"))
