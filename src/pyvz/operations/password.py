"""Passwords of users inside a container.

The container's own `chpasswd` and `useradd` do the work, inside; the node never touches the
guest's password files.  The password travels on the standard input only: never in an argument,
an environment variable or a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyvz.errors import PasswordError, VZError
from pyvz.model.environment import Environment
from pyvz.model.secret import Secret
from pyvz.operations import execute
from pyvz.operations.credentials import check_password, check_user
from pyvz.operations.node import Node
from pyvz.operations.program import Ended

TIME_LIMIT: Final = 60.0  # seconds for each of the two programs inside


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
