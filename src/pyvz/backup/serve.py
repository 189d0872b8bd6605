"""The storage's side of the line: a repository of this node, for one other node.

Every question is checked before it is answered; a chunk is unpacked and compared with its name
before it is stored, so that nobody can put a false one into the storage.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pyvz.backup import line
from pyvz.backup.chunk import Writer, unpacked
from pyvz.backup.line import Line, Message
from pyvz.backup.manifest import Manifest, parse_id
from pyvz.backup.repository import Repository
from pyvz.errors import (
    BackupNotFound,
    ConnectionBroken,
    InvalidState,
    NoSpace,
    StorageError,
    UsageError,
    VZError,
)
from pyvz.model.environment import canonical_uuid
from pyvz.model.task import NoProgress

log = logging.getLogger(__name__)

_IDLE: Final = 24 * 3600.0  # seconds that the other node may read its disks between two questions
_MOST: Final = 4096  # names in one question
Answer = tuple[Any, bytes]


def serve(reading: int, writing: int, place: Callable[[str | None], Path]) -> None:
    """Answer until the other node goes.  place: the directory of a path that it names, checked."""
    with ExitStack() as held:
        storage = _Storage(Line(reading, writing), place, held)
        storage.run()


class _Storage:
    """One connection.  held: the locks and the writer, given up when it ends."""

    def __init__(self, wire: Line, place: Callable[[str | None], Path], held: ExitStack) -> None:
        self._line = wire
        self._place = place
        self._held = held
        self._repository: Repository | None = None
        self._locked: ExitStack | None = None
        self._writer: Writer | None = None
        self._failed: VZError | None = None  # of a question that has no answer

    def run(self) -> None:
        """Greet, and answer one question after the other."""
        self._line.greet()
        while True:
            try:
                message, data = self._line.receive(_IDLE)
            except ConnectionBroken:
                return
            kind = str(message.get("do"))
            if kind == "bye":
                return
            try:
                result, more = self._answer(kind, message, data)
            except VZError as error:
                self._refuse(kind, error)
            except OSError as error:
                full = error.errno in {28, 122}  # ENOSPC, EDQUOT
                named = (NoSpace if full else StorageError)(str(error.strerror or error))
                self._refuse(kind, named)
            else:
                if kind not in line.ONE_WAY:
                    self._line.send({"result": result}, more)

    def _refuse(self, kind: str, error: VZError) -> None:
        if kind in line.ONE_WAY:
            self._failed = self._failed or error
        else:
            self._line.send(line.error_message(error))

    def _answer(self, kind: str, message: Message, data: bytes) -> Answer:
        if self._failed is not None:
            raise self._failed
        answer: Callable[[Message, bytes], Answer] | None = getattr(self, f"_do_{kind}", None)
        if answer is None or not kind.isidentifier():
            raise UsageError(f"There is no question '{kind[:40]}'")
        return answer(message, data)

    @property
    def _open(self) -> Repository:
        if self._repository is None:
            raise InvalidState("No storage is opened")
        return self._repository

    def _do_open(self, message: Message, _data: bytes) -> Answer:
        path = self._place(_optional(message, "path"))
        maker = Repository.make if message.get("make") is True else Repository.open
        self._repository = maker(path)
        return {"host": socket.gethostname(), "path": str(path)}, b""

    def _do_lock(self, message: Message, _data: bytes) -> Answer:
        if self._locked is not None:
            raise InvalidState("The storage is locked already")
        stack = ExitStack()
        shared = message.get("shared") is not False
        stack.enter_context(self._open.shared() if shared else self._open.alone())
        self._locked = stack
        self._held.push(stack)
        return None, b""

    def _do_unlock(self, _message: Message, _data: bytes) -> Answer:
        if self._locked is not None:
            self._locked.close()
            self._locked = None
        return None, b""

    def _need_lock(self) -> Repository:
        if self._locked is None:
            raise InvalidState("The storage is not locked")
        return self._open

    def _do_ids(self, message: Message, _data: bytes) -> Answer:
        return [list(each) for each in self._open.ids(_uuid(message))], b""

    def _do_manifest(self, message: Message, _data: bytes) -> Answer:
        uuid, ident = _uuid(message), parse_id(_word(message, "id"))
        if uuid is None:
            raise UsageError("No environment is named")
        return None, self._open.text(uuid, ident).encode()

    def _do_damaged(self, message: Message, _data: bytes) -> Answer:
        return self._open.is_damaged(self._manifest(message)), b""

    def _do_mark(self, message: Message, _data: bytes) -> Answer:
        self._open.mark(self._manifest(message), damaged=message.get("damaged") is True)
        return None, b""

    def _do_has(self, message: Message, _data: bytes) -> Answer:
        names = message.get("digests")
        if not isinstance(names, list) or len(names) > _MOST:
            raise UsageError("Too many names")
        chunks = self._open.chunks
        return [chunks.has(_digest(name)) for name in names], b""

    def _do_get(self, message: Message, _data: bytes) -> Answer:
        return None, self._open.chunks.raw(_digest(message.get("digest")))

    def _do_put(self, message: Message, data: bytes) -> Answer:
        digest = _digest(message.get("digest"))
        unpacked(digest, data)
        self._write().put_frame(digest, data)
        return None, b""

    def _do_flush(self, _message: Message, _data: bytes) -> Answer:
        writer = self._write()
        writer.flush()
        return {"stored": writer.stored, "new": writer.new}, b""

    def _write(self) -> Writer:
        if self._writer is None:
            self._writer = self._held.enter_context(Writer(self._need_lock().chunks))
        return self._writer

    def _do_commit(self, _message: Message, data: bytes) -> Answer:
        text = data.decode("utf-8", "surrogateescape")
        self._need_lock().commit(Manifest.from_json(text, source="the other node"))
        return None, b""

    def _do_remove(self, message: Message, _data: bytes) -> Answer:
        self._need_lock().remove(self._manifest(message))
        return None, b""

    def _do_tidy(self, _message: Message, _data: bytes) -> Answer:
        return self._need_lock().tidy(NoProgress()), b""

    def _do_verify(self, message: Message, _data: bytes) -> Answer:
        return self._open.verify(self._manifest(message), NoProgress()), b""

    def _manifest(self, message: Message) -> Manifest:
        return self._open.find(parse_id(_word(message, "id")))


def _word(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or len(value) > 4096:
        raise UsageError(f"'{name}' is missing")
    return value


def _optional(message: Message, name: str) -> str | None:
    return None if message.get(name) is None else _word(message, name)


def _uuid(message: Message) -> str | None:
    text = _optional(message, "uuid")
    if text is None:
        return None
    uuid = canonical_uuid(text)
    if uuid is None:
        raise BackupNotFound(f"'{text[:80]}' is no UUID")
    return uuid


def _digest(value: object) -> bytes:
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError("That is not the name of a chunk")
    return digest
