"""Journals: what an operation was about to do, so that a crash in the middle can be repaired.

``<root>/var/lib/pyvz/journal/<uuid>.jsonl`` exists exactly while an operation on the environment is
under way, or was when the node died.  It is written by the holder of the environment's lease only,
so there is one operation and one journal at a time.  Each line is one JSON object, written (and
fsynced, in a durable journal) before the step that it announces is taken:

    {"verb": "start", "uuid": "...", "data": {...}, "at": 1700000000.0, "pid": 123}
    {"step": "mounted", "data": {...}, "at": 1700000000.1}

A line that the crash tore off is ignored: what it announces was not begun.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pyvz.errors import InternalError, NoSpace
from pyvz.linux.file import fsync_directory
from pyvz.model.environment import canonical_uuid
from pyvz.store.paths import Paths

log = logging.getLogger(__name__)

_LIMIT = 1 << 20  # bytes that are read of a journal; a real one has a few hundred
_NOTHING: Mapping[str, object] = {}


class Step(NamedTuple):
    """One thing that was announced."""

    name: str
    data: Mapping[str, object]
    at: float


class Record(NamedTuple):
    """A journal as it was found."""

    uuid: str
    verb: str
    data: Mapping[str, object]
    began: float
    pid: int
    steps: tuple[Step, ...]

    def step(self, name: str) -> Step | None:
        """Return the last step of that NAME, or None when it was not reached."""
        return next((step for step in reversed(self.steps) if step.name == name), None)


class Journal:
    """The journal of one operation that is under way.

    As a context manager it is done when the block ends well, and stays for recovery when the block
    raises; who undid everything before raising calls done() itself.
    """

    def __init__(self, path: Path, fd: int, *, durable: bool) -> None:
        self._path = path
        self._fd = fd
        self._durable = durable

    @classmethod
    def begin(
        cls,
        paths: Paths,
        uuid: str,
        verb: str,
        data: Mapping[str, object] = _NOTHING,
        *,
        durable: bool = True,
    ) -> Self:
        """Begin a journal; the caller holds the lease of UUID.

        DATA are JSON values.  durable: it has to outlive the machine; what is about run state only
        (start, stop) dies with it, and is not worth the wait for the disk.

        Raises InternalError when there is a leftover: that has to be repaired first, and
        forgotten with Journal.forget().
        """
        directory = _directory(paths)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{uuid}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise InternalError(f"{path} tells of an operation that was not repaired") from error
        journal = cls(path, fd, durable=durable)
        try:
            journal._write({"verb": verb, "uuid": uuid, "data": dict(data), "pid": os.getpid()})
            journal._sync_names()
        except BaseException:
            journal.done()
            raise
        return journal

    def note(self, step: str, data: Mapping[str, object] = _NOTHING) -> None:
        """Announce STEP, durably, before it is taken; raises NoSpace, OSError: it was not."""
        self._write({"step": step, "data": dict(data)})

    def done(self) -> None:
        """Forget the journal: there is nothing to repair.  A second time is fine."""
        try:
            if self._fd >= 0:
                self._path.unlink(missing_ok=True)
                self._sync_names()
        finally:
            self.leave()

    def leave(self) -> None:
        """Close the file and leave it for recovery."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.done()
        else:
            self.leave()

    def _write(self, fields: Mapping[str, object]) -> None:
        line = json.dumps({**fields, "at": time.time()}, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._fd, line)
        if written != len(line):  # torn, it would hide what is noted after it
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise NoSpace(f"{self._path} could not be written: no space left")
        if self._durable:
            os.fdatasync(self._fd)

    def _sync_names(self) -> None:
        if self._durable:
            fsync_directory(self._path.parent)

    @staticmethod
    def leftover(paths: Paths, uuid: str) -> Record | None:
        """Return what an operation on UUID left behind, or None; the caller holds the lease.

        A journal whose very first line is torn announces nothing: it is removed.
        """
        path = _directory(paths) / f"{uuid}.jsonl"
        record = _read(path, uuid)
        if record is None and path.exists():
            log.warning("%s announces nothing and is removed", path)
            path.unlink(missing_ok=True)
        return record

    @staticmethod
    def forget(paths: Paths, uuid: str) -> None:
        """Remove a leftover that was repaired; nothing there is fine."""
        path = _directory(paths) / f"{uuid}.jsonl"
        if path.exists():
            path.unlink(missing_ok=True)
            fsync_directory(path.parent)

    @staticmethod
    def all(paths: Paths) -> list[Record]:
        """Return every journal, oldest first.  Some may belong to operations under way."""
        uuids = [canonical_uuid(path.stem) for path in _directory(paths).glob("*.jsonl")]
        found = (_read(_directory(paths) / f"{uuid}.jsonl", uuid) for uuid in uuids if uuid)
        return sorted((record for record in found if record), key=lambda record: record.began)


def _directory(paths: Paths) -> Path:
    return paths.lib / "journal"


def _read(path: Path, uuid: str) -> Record | None:
    try:
        with path.open("rb") as file:
            lines = file.read(_LIMIT).split(b"\n")
    except FileNotFoundError:
        return None
    entries = []
    for line in lines[:-1]:  # what follows the last newline is torn, or nothing
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    if not entries or "verb" not in entries[0]:
        return None
    head, *rest = entries
    steps = (
        Step(str(entry.get("step", "")), entry.get("data") or {}, float(entry.get("at", 0)))
        for entry in rest
    )
    return Record(
        uuid=uuid,
        verb=str(head["verb"]),
        data=head.get("data") or {},
        began=float(head.get("at", 0)),
        pid=int(head.get("pid", 0)),
        steps=tuple(steps),
    )
