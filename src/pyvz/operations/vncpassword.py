"""The password of a machine's remote display: a file of its own, readable by root only."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pyvz.errors import BadValue, InvalidState
from pyvz.linux.file import read_text_limited, write_atomic
from pyvz.model.environment import Environment
from pyvz.model.secret import Secret
from pyvz.vm.monitor import Monitor

FILE = "vnc.secret"
MAX = 8  # characters: the VNC protocol (RFC 6143, 7.2.2) uses no more


def _path(env: Environment) -> Path:
    return env.home / FILE


def check(password: str) -> Secret:
    """Return a new password; raises BadValue, without repeating it."""
    if not 1 <= len(password) <= MAX or not password.isascii() or not password.isprintable():
        raise BadValue(f"A VNC password has 1 to {MAX} ASCII characters")
    return Secret(password)


def keep(env: Environment, password: Secret | None) -> None:
    """Write it down; None: there is none any more."""
    if password is None:
        _path(env).unlink(missing_ok=True)
    else:
        write_atomic(_path(env), password.reveal(), 0o600)


def known(env: Environment) -> Secret | None:
    """Return the password that was set, or None."""
    with suppress(FileNotFoundError):
        return Secret(read_text_limited(_path(env), limit=1024))
    return None


def put_in_force(env: Environment, monitor: Monitor) -> None:
    """Give it to QEMU by the monitor: it appears in no command line and no log."""
    password = known(env)
    if password is None:
        raise InvalidState(
            f"The remote display of {env.name} has no password",
            hint="prlctl set ID --vnc-passwd PASSWORD, or --vnc-nopasswd",
        )
    words = {"protocol": "vnc", "password": password.reveal()}
    monitor.execute("set_password", words)
