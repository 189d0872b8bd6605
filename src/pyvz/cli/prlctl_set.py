"""prlctl set: the options come from PARAMS, what is said comes from the server."""

from __future__ import annotations

import os
import sys

from pyvz.cli import options
from pyvz.cli.program import failed
from pyvz.cli.subject import find, say
from pyvz.errors import BadValue, UsageError, VZError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvz.cli.arguments import Arguments, OptionRow
    from pyvz.cli.server import Server

OPTIONS: dict[str, tuple[OptionRow, ...]] = {"set": options.PRLCTL}

# Not parameters: they say how prlctl itself works.
_NOT_SENT = frozenset({"login", "read-passwd", "verbose", "timeout", "compat", "debug"})
_LONGEST = 1 << 17  # characters of a file of keys


def set_(args: Arguments, server: Server) -> int:
    """Change parameters, at once where the environment runs, and for good."""
    ref = args.word("The ID or name")
    given = [
        {"name": name, "value": value} for name, value in args.options if name not in _NOT_SENT
    ]
    if not given:
        raise UsageError("No options are specified", hint="prlctl --help lists them.")
    subject = find(server, ref)
    if {"name": "distribution", "value": "list"} in given:
        from pyvz.cli import distributions  # noqa: PLC0415  few ask for it

        say(distributions.listing(families=False))
        return 0
    for option in given:
        option["value"] = _understood(option["name"] or "", option["value"])
    try:
        reply = server.change(
            "Environment.Set", ref=subject.uuid, dialect="prlctl", options=given, save=True
        )
    except BadValue:
        raise  # the original finds it before it begins: its text stands alone
    except VZError as error:
        raise failed(f"configure the {subject.kind}", error) from error
    for line in reply["echo"]:
        say(line)
    if reply["restart_needed"]:
        names = ", ".join(reply["restart_needed"])
        sys.stderr.write(f"Takes effect after a restart of the {subject.kind}: {names}\n")
    say(f"\nThe {subject.kind} has been successfully configured.")
    return 0


def _understood(name: str, value: str | None) -> str | None:
    """Return the value of an option as the server takes it, which knows neither our directory nor
    our files.
    """
    if name == "image" and value:
        return os.path.realpath(value)
    if name == "distribution":
        from pyvz.cli import distributions  # noqa: PLC0415  few ask for it

        return distributions.find(str(value), family=False)
    if name == "ssh-keys":
        return keys_of(str(value))
    if name == "vnc-passwd" and value == "-":
        return _asked("Password of the remote display: ")
    return value


def _asked(prompt: str) -> str:
    """Return a password from the terminal, without an echo, or the first line of the input."""
    if os.isatty(0):
        from getpass import getpass  # noqa: PLC0415  few are asked

        return getpass(prompt)
    return sys.stdin.readline().rstrip("\n")


def keys_of(path: str) -> str:
    """Return the content of a file of public keys; "none" stays what it is."""
    if path == "none":
        return path
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = file.read(_LONGEST).splitlines()
    except OSError as error:
        raise BadValue(f"--ssh-keys: {path} cannot be read: {error.strerror}") from error
    keys = [line for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise BadValue(f"--ssh-keys: there is no key in {path}", hint="none takes all away.")
    return ";".join(keys)
