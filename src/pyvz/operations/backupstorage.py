"""Where backups are kept: a directory of this node, or one of another node, reached by ssh.

    ssh [user@]node vzmdest backup     one connection for as long as an operation lasts
    <etc>/ssh_config                   where it is there, ssh is given it (-F)

Keys, host keys, ports and names are ssh's: nothing is asked, nothing is trusted unseen.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from pyvz.backup import remote
from pyvz.backup.line import Line
from pyvz.backup.repository import Repository
from pyvz.errors import (
    BadValue,
    CommandFailed,
    ConnectionBroken,
    ConnectionFailed,
    Timeout,
)
from pyvz.linux import run
from pyvz.migration import address as addresses
from pyvz.migration import cipher, lastwords
from pyvz.migration.address import Address
from pyvz.model.task import NoProgress, Progress
from pyvz.operations.node import Node

_DIRECTORY: Final = "backups"
_GREETING: Final = 60.0  # seconds: ssh's own time to connect, and vzd's to start over there
_SSH_CONFIG: Final = "ssh_config"


class Where(NamedTuple):
    """path: the directory (None: the node's own).  storage: another node, [user@]host[:port]."""

    path: str | None = None
    storage: str | None = None


def default_path(node: Node) -> Path:
    """Return where backups are kept when nothing else is said."""
    return node.paths.vz / _DIRECTORY


def place(node: Node, path: str | None) -> Path:
    """Return the directory of a repository; raises BadValue for one inside a container's files."""
    if path is None:
        return default_path(node)
    if not path.startswith("/"):
        raise BadValue(f"The path of backups has to be absolute: '{path}'")
    real = Path(os.path.realpath(path))
    for other in (*(env.home for env in node.registry.environments()), node.paths.ve_root):
        if real.is_relative_to(os.path.realpath(other)):
            raise BadValue(f"{path} lies in the files of a container: no place for backups")
    return real


def name_of(node: Node, where: Where) -> str:
    """Return a name of a repository that is a file name, and always the same for that place."""
    path = where.path or ""
    text = os.fspath(place(node, where.path)) if where.storage is None else path
    return hashlib.sha256(f"{where.storage or ''}\0{text}".encode()).hexdigest()[:16]


@contextmanager
def opened(
    node: Node, where: Where, progress: Progress | None = None, *, make: bool = False
) -> Iterator[Repository]:
    """Yield the repository, made when there is none and `make`.

    Raises BackupNotFound, StorageError, BadValue, ConnectionFailed with ssh's own words.
    """
    if where.storage is None:
        path = place(node, where.path)
        yield Repository.make(path) if make else Repository.open(path)
        return
    if where.path is not None and not where.path.startswith("/"):
        raise BadValue(f"The path of backups has to be absolute: '{where.path}'")
    address = addresses.parse(where.storage)
    progress = progress or NoProgress()
    progress.stage(f"Connecting to {address}")
    with _dialled(node, address, progress) as line:
        yield remote.connected(line, str(address), where.path, progress, make=make)


@contextmanager
def _dialled(node: Node, address: Address, progress: Progress) -> Iterator[Line]:
    config = node.paths.etc / _SSH_CONFIG
    options = ["-F", os.fspath(config)] if config.is_file() else []
    argv = [*cipher.command(address, options), "backup"]
    with ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        try:
            process = stack.enter_context(
                run.spawn(argv, input_pipe=True, stderr_fd=errors.fileno())
            )
        except CommandFailed as error:
            raise ConnectionFailed("ssh cannot be started", details=error.message) from error
        assert process.stdin is not None  # noqa: S101  asked for above
        assert process.stdout is not None  # noqa: S101
        line = Line(process.stdout.fileno(), process.stdin.fileno())
        try:
            line.await_greeting(_GREETING, progress.check)
        except (ConnectionBroken, Timeout) as error:
            raise lastwords.not_connected(
                address, error.message, lastwords.awaited(errors)
            ) from error
        try:
            yield line
        except ConnectionBroken as error:
            details = lastwords.tail(errors).strip() or error.details
            raise ConnectionBroken(f"{address}: {error.message}", details=details) from error
