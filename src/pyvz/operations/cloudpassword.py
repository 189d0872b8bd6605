"""Passwords that cloud-init sets at the next boot: as hashes in a file that root alone can read.

<home>/cloud-init.secret    {user: hash as in shadow(5)}
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Final

from pyvz.errors import ConfigError
from pyvz.linux import run as programs
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.model.environment import Environment
from pyvz.operations.options import NewPassword

FILE: Final = "cloud-init.secret"
_HASH: Final = ["openssl", "passwd", "-6", "-stdin"]  # SHA-512: every system can read that
_TIMEOUT: Final = 60.0


def keep(env: Environment, new: NewPassword) -> None:
    """Write one down, beside those of other users; raises CommandFailed, ConfigError."""
    known = passwords(env)
    text = new.secret.reveal()
    if not new.crypted:
        text = programs.run(_HASH, input=f"{text}\n", timeout=_TIMEOUT).stdout.strip()
    write_atomic(env.home / FILE, json.dumps(known | {new.user: text}), 0o600)


def passwords(env: Environment) -> dict[str, str]:
    """Return the hash of each user that has one; raises ConfigError."""
    with suppress(FileNotFoundError):
        try:
            found = json.loads(read_text_limited(env.home / FILE))
            return {str(user): str(text) for user, text in found.items()}
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{env.home / FILE} is damaged", hint="Remove it.") from error
    return {}
