"""Passwords of users inside a container.

The container's own `chpasswd` and `useradd` do the work, inside; the node never touches the
guest's password files.  The password travels on the standard input only: never in an argument,
an environment variable or a log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pyvz.errors import BadValue, PasswordError, VZError
from pyvz.model.environment import Environment
from pyvz.model.secret import Secret
from pyvz.operations import execute
from pyvz.operations.node import Node
from pyvz.operations.program import Ended

TIME_LIMIT: Final = 60.0  # seconds for each of the two programs inside
# shadow-utils' own rule (lib/chkname.c), and no dash at the beginning: it would be an option.
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,254}\$?")
# crypt(5): "$id$..." or the 13 characters of the oldest method; "!" and "*" lock the account.
_CRYPTED = re.compile(r"[!*]?[$./A-Za-z0-9,=_+-]*")
_MAX_LENGTH: Final = 511  # PAM_MAX_RESP_SIZE is 512 (pam_appl)


def set_password(
    node: Node, ref: str, user: str, password: Secret, *, crypted: bool = False
) -> None:
    """Give `user` a new password; a user that does not exist is created with a home directory.

    crypted: the password is a hash as in shadow(5).  A stopped container is started minimally for
    the time of it.  The caller must not hold the lease.
    Raises BadValue, EnvironmentNotFound, PasswordError (what the guest said).
    """
    check_user(user)
    check_password(password, crypted=crypted)
    env = node.registry.resolve(ref)
    with execute.minimal(node, env):
        set_inside(node, env, user, password, crypted=crypted)


def set_inside(
    node: Node, env: Environment, user: str, password: Secret, *, crypted: bool = False
) -> None:
    """Do it in a container that runs; raises PasswordError."""
    if _call(node, env, ["id", "-u", user]).code != 0:
        _create_user(node, env, user)
    line = f"{user}:{password.reveal()}\n".encode("utf-8", "surrogateescape")
    argv = ["chpasswd", "-e"] if crypted else ["chpasswd"]
    ended = _call(node, env, argv, line)
    if ended.code != 0:
        raise _refused(env, f"refused the new password of {user}", ended)


def check_user(user: str) -> None:
    """Raise BadValue when nobody may be called `user`."""
    if not _USER.fullmatch(user) or user in {".", ".."}:
        raise BadValue(f"'{user}' is not a valid user name")


def check_password(password: Secret, *, crypted: bool) -> None:
    """Raise BadValue for a password that cannot be handed over; never shows it."""
    text = password.reveal()
    if not text:
        raise BadValue("The password is empty")
    if len(text.encode("utf-8", "surrogateescape")) > _MAX_LENGTH:
        raise BadValue(f"The password is longer than {_MAX_LENGTH} bytes")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise BadValue("The password holds a control character")
    if crypted and not _CRYPTED.fullmatch(text):
        raise BadValue("The password is not a hash as crypt(5) makes it")


def _create_user(node: Node, env: Environment, user: str) -> None:
    ended = _call(node, env, ["useradd", "-m", user])
    if ended.code == 127:  # no shadow-utils: busybox
        ended = _call(node, env, ["adduser", "-D", user])
    if ended.code != 0:
        raise _refused(env, f"could not create the user {user}", ended)


def _call(node: Node, env: Environment, argv: Sequence[str], data: bytes = b"") -> Ended:
    """Run a program inside; one that is not there ends with 127, as in a shell."""
    try:
        return execute.run(node, env, argv, data=data, timeout=TIME_LIMIT)
    except VZError as error:
        raise PasswordError(
            f"{argv[0]} could not be run in {env.name}: {error.message}", details=error.details
        ) from error


def _refused(env: Environment, what: str, ended: Ended) -> PasswordError:
    last = "\n".join(ended.output.strip().splitlines()[-5:])
    return PasswordError(f"{env.name} {what}", details=last or f"status {ended.code}")
