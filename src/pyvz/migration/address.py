"""Where a node is, as administrators write it: [user[:password]@]host[:port].  Values only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final, NamedTuple

from pyvz.errors import BadValue, Unsupported

COMMAND: Final = "vzmdest"  # on the other node; connects to its vzd
# Nothing that ssh, or a shell on the way, could take for something else than a name.
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%-]{0,254}")
_ADDRESS6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9_.-]{1,32})?")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,127}")
# What --ssh says comes first and wins over these; all else is as the ssh configuration has it.
_DEFAULTS: Final = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "Compression=no",  # ours is faster, and knows when it pays
    "LogLevel=ERROR",
)


class Address(NamedTuple):
    """A node.  user, port: None as the ssh configuration has it."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


def parse(text: str) -> Address:
    """Return the address that TEXT means; raises BadValue, Unsupported (a password)."""
    login, at, server = text.rpartition("@")
    user, colon, password = login.partition(":")
    if colon and password:
        raise Unsupported(
            "A password for the other node cannot be given",
            hint="Log in with a key: ssh-copy-id root@NODE, then name the node without a password.",
        )
    if at and not _USER.fullmatch(user):
        raise BadValue(f"'{user}' cannot be the name of a user on the other node")
    host, port = _split(server)
    if not (_HOST.fullmatch(host) or (":" in host and _ADDRESS6.fullmatch(host))):
        raise BadValue(f"'{server}' is not the address of a node")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BadValue(f"'{port}' is not a port")
    return Address(host, user or None, int(port) if port else None)


def _split(server: str) -> tuple[str, str]:
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        return host, rest.removeprefix(":")
    if server.count(":") > 1:
        return server, ""
    host, _, port = server.partition(":")
    return host, port


def ssh(address: Address, options: Sequence[str] = ()) -> list[str]:
    """Return the command that connects to the dispatcher of the node at ADDRESS."""
    argv = ["ssh", *options]
    for default in _DEFAULTS:
        argv += ["-o", default]
    argv += ["-T", "-a", "-x", *_login(address)]
    return [*argv, "--", address.host, COMMAND]


def asking(address: Address, options: Sequence[str] = ()) -> list[str]:
    """Return the words of ssh with which it can be asked for its configuration (ssh -G)."""
    return ["ssh", *options, *_login(address), "--", address.host]


def _login(address: Address) -> list[str]:
    port = [] if address.port is None else ["-p", str(address.port)]
    return port if address.user is None else [*port, "-l", address.user]


def ssh_options(text: str | None) -> list[str]:
    """Return the words of `--ssh "OPTIONS"`; raises BadValue."""
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise BadValue(f"The ssh options '{text}' cannot be understood: {error}") from error
    if words and not words[0].startswith("-"):
        raise BadValue(f"The ssh options '{text}' do not begin with a dash")
    return words
