"""firewalld(1): interfaces of ours in a zone, by firewall-cmd, as an administrator does it.

Of what runs only, so it must be done again when firewalld is reloaded or restarted; nothing is
written into its configuration.  A name that ends in "+" is a beginning of names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvz.errors import NetworkError, NotFound, Unsupported
from pyvz.linux import run

PROGRAM = "firewall-cmd"

_TIMEOUT = 20.0  # seconds; it takes half of one, most of it to load itself
_BUS = "DBUS_SYSTEM_BUS_ADDRESS"  # libdbus: where the system's bus is, if it is not where it is due
_UNKNOWN_INTERFACE, _INVALID_ZONE, _NOT_RUNNING = 17, 112, 252  # firewall/errors.py


def bind(zone: str, names: Sequence[str]) -> None:
    """Put interfaces into a zone, out of the one in which they were.

    Raises NotFound (no such zone), Unsupported (firewalld does not run), NetworkError, Timeout.
    """
    _command(zone, [f"--change-interface={name}" for name in names])


def unbind(zone: str, names: Sequence[str]) -> None:
    """Take interfaces out of a zone, if they are in it; raises what `bind` raises."""
    _command(zone, [f"--remove-interface={name}" for name in names])


def _command(zone: str, words: Sequence[str]) -> None:
    if not words:
        return
    bus = {_BUS: os.environ[_BUS]} if _BUS in os.environ else {}
    argv = [PROGRAM, "--quiet", f"--zone={zone}", *words]
    done = run.run(argv, env=bus, timeout=_TIMEOUT, check=False)
    if done.code == _INVALID_ZONE:
        raise NotFound(f"firewalld has no zone {zone}")
    if done.code == _NOT_RUNNING:
        raise Unsupported("firewalld does not run")
    if done.code not in {0, _UNKNOWN_INTERFACE}:
        raise NetworkError("firewalld refused", details=run.failure(argv, done).details)
