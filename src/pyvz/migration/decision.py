"""The one commit point of a migration, kept by the node that takes over.

    <root>/var/lib/pyvz/migration/<id>   one word: "taken" or "refused"

The file appears once, whole and durable, and is never changed: whoever makes it first decides.  The
taking node writes "taken" when it has everything; when the giving node cannot know whether that
happened (the connection broke), it asks, and the answer to the question writes "refused" unless
there is a decision already.  So both sides agree, whatever dies in between.  It is kept until the
giving node says that it knows.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final

from pyvz.errors import MigrationError, ProtocolError
from pyvz.linux.file import fsync_directory
from pyvz.store.paths import Paths

TAKEN, REFUSED = "taken", "refused"
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_KEPT: Final = 90 * 86400.0  # seconds, of those that nobody asked for


def take(paths: Paths, ident: str) -> None:
    """Decide that this node takes over; raises MigrationError when it was refused before."""
    if _decide(paths, ident, TAKEN) != TAKEN:
        raise MigrationError("The other node has called the migration off")


def ask(paths: Paths, ident: str) -> str:
    """Return what was decided; nothing yet: it is refused from now on."""
    return _decide(paths, ident, REFUSED)


def known(paths: Paths, ident: str) -> str | None:
    """Return what was decided, None when nothing."""
    try:
        return path_of(paths, ident).read_text()
    except FileNotFoundError:
        return None


def forget(paths: Paths, ident: str) -> None:
    """Drop a decision that everybody knows."""
    path_of(paths, ident).unlink(missing_ok=True)


def prune(paths: Paths) -> None:
    """Drop what is older than three months, and what a death left half written."""
    with contextlib.suppress(FileNotFoundError):
        for path in _directory(paths).iterdir():
            age = time.time() - path.stat().st_mtime
            if age > (3600.0 if path.name.startswith(".") else _KEPT):
                path.unlink(missing_ok=True)


def _decide(paths: Paths, ident: str, word: str) -> str:
    path = path_of(paths, ident)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{ident}.{os.getpid()}.{time.monotonic_ns()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, word.encode())
        os.fsync(fd)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)  # fails when there is one, and is all or nothing
        fsync_directory(path.parent)
    finally:
        os.close(fd)
        temporary.unlink()
    return path.read_text()


def _directory(paths: Paths) -> Path:
    return paths.lib / "migration"


def path_of(paths: Paths, ident: str) -> Path:
    """Return the decision's file; raises ProtocolError for what is no id."""
    if not _ID.fullmatch(ident):
        raise ProtocolError(f"'{ident[:40]}' is not the id of a migration")
    return _directory(paths) / ident
