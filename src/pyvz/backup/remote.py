"""A repository on another node, used as if it were here: what is asked goes over a line (line.py).

Only what the storage does not have crosses the line, compressed: it is asked for the names of
chunks in batches.  Locks and half-written data end with the connection.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pyvz.backup import line
from pyvz.backup.chunk import Chunks, Writer, checked_length, digest_of, packed, unpacked
from pyvz.backup.line import Line, Message
from pyvz.backup.manifest import Manifest
from pyvz.backup.repository import Repository
from pyvz.errors import ConnectionBroken
from pyvz.model.task import Progress

_ANSWER: Final = 600.0  # seconds for what takes the storage a moment
_BATCH: Final = 32  # chunks about which it is asked at once


class Questions:
    """Questions over a line from any number of threads; answers come in the order of asking."""

    def __init__(self, wire: Line, host: str, progress: Progress) -> None:
        self._line = wire
        self.host = host
        self._poll = progress.check
        self._asking = threading.Lock()
        self._turn = threading.Condition()
        self._next = 0  # whose answer comes next
        self._numbers = itertools.count()
        self._over = False

    def ask(
        self,
        kind: str,
        *,
        timeout: float | None = _ANSWER,
        data: bytes = b"",
        **fields: Any,  # noqa: ANN401
    ) -> tuple[Any, bytes]:
        """Return the answer and its data; raises what the storage answers, ...."""
        with self._asking:
            number = next(self._numbers)
            self._line.send({"do": kind, **fields}, data)
        with self._turn:
            while self._next != number:
                self._turn.wait()
        try:
            self._check()
            message, answer = self._line.receive(timeout, self._poll)
        except BaseException:
            self._over = True  # perhaps in the middle of an answer
            raise
        finally:
            with self._turn:
                self._next = number + 1
                self._turn.notify_all()
        if "error" in message:
            raise line.error_of(message, self.host)
        return message.get("result"), answer

    def _check(self) -> None:
        if self._over:
            raise ConnectionBroken(f"The connection to {self.host} is over")

    def tell(self, kind: str, data: bytes, **fields: Any) -> None:  # noqa: ANN401
        """Say something that has no answer."""
        message: Message = {"do": kind, **fields}
        with self._asking:
            self._line.send(message, data)


class RemoteChunks(Chunks):
    """The chunks over there."""

    def __init__(self, path: Path, questions: Questions) -> None:
        super().__init__(path)
        self.questions = questions

    def has(self, digest: bytes) -> bool:
        """Whether the chunk is there."""
        return self.have([digest])[0]

    def have(self, digests: list[bytes]) -> list[bool]:
        """Whether each of the chunks is there."""
        names = [digest.hex() for digest in digests]
        found, _ = self.questions.ask("has", digests=names)
        return [bool(each) for each in found]

    def get(self, digest: bytes, length: int | None = None) -> bytes:
        """Return the content, checked here; see Chunks.get."""
        _, frame = self.questions.ask("get", digest=digest.hex())
        data = unpacked(digest, frame)
        checked_length(digest, data, length)
        return data


class RemoteWriter(Writer):
    """Adds chunks to a storage over there; what was not flushed is dropped with the connection."""

    def __init__(self, chunks: RemoteChunks) -> None:
        super().__init__(chunks)
        self._remote = chunks
        self._known: set[bytes] = set()
        self._batch: list[tuple[bytes, bytes]] = []
        self._batching = threading.Lock()

    def __enter__(self) -> RemoteWriter:
        """Nothing to make here."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to drop here."""

    def put(self, data: bytes | memoryview) -> bytes:
        """Have DATA stored unless it is there, some time until `flush`; return its name."""
        digest = digest_of(data)
        with self._batching:
            if digest in self._known:
                return digest
            self._known.add(digest)
            self._batch.append((digest, bytes(data)))
            full = self._batch if len(self._batch) >= _BATCH else []
            if full:
                self._batch = []
        self._send(full)
        return digest

    def flush(self) -> None:
        """Make every chunk given so far durable over there."""
        with self._batching:
            rest, self._batch = self._batch, []
        self._send(rest)
        counted, _ = self._remote.questions.ask("flush", timeout=None)
        self.stored, self.new = int(counted["stored"]), int(counted["new"])

    def _send(self, batch: list[tuple[bytes, bytes]]) -> None:
        if not batch:
            return
        there = self._remote.have([digest for digest, _ in batch])
        for (digest, data), known in zip(batch, there, strict=True):
            if not known:
                self._remote.questions.tell("put", packed(data), digest=digest.hex())


class RemoteRepository(Repository):
    """The repository over there; made by `connected`."""

    def __init__(self, path: Path, questions: Questions) -> None:
        super().__init__(path)
        self._questions = questions
        self._remote = RemoteChunks(path, questions)
        self.chunks = self._remote

    def writer(self) -> Writer:
        """Return what adds chunks."""
        return RemoteWriter(self._remote)

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        self._questions.ask("lock", shared=shared)
        yield
        # After an error the line may be of no use any more; the lock goes with the connection.
        self._questions.ask("unlock")

    def ids(self, uuid: str | None = None) -> list[tuple[str, str]]:
        """Return (UUID of the environment, id of the backup)."""
        found, _ = self._questions.ask("ids", uuid=uuid)
        return [(str(env), str(ident)) for env, ident in found]

    def text(self, uuid: str, ident: str) -> str:
        """Return a manifest as it is written."""
        _, data = self._questions.ask("manifest", uuid=uuid, id=ident)
        return data.decode("utf-8", "surrogateescape")

    def commit(self, manifest: Manifest) -> None:
        """Make a backup whose chunks are flushed a backup."""
        self._questions.ask("commit", data=manifest.to_json().encode("utf-8", "surrogateescape"))

    def remove(self, manifest: Manifest) -> None:
        """Forget a backup."""
        self._questions.ask("remove", id=manifest.id)

    def mark(self, manifest: Manifest, *, damaged: bool) -> None:
        """Note whether a check found the backup damaged."""
        self._questions.ask("mark", id=manifest.id, damaged=damaged)

    def is_damaged(self, manifest: Manifest) -> bool:
        """Whether the last check found the backup damaged."""
        return bool(self._questions.ask("damaged", id=manifest.id)[0])

    def verify(self, manifest: Manifest, progress: Progress) -> list[str]:
        """Have every byte read over there."""
        progress.stage(f"Checking {manifest.tag} on {self._questions.host}")
        found, _ = self._questions.ask("verify", timeout=None, id=manifest.id)
        return [str(problem) for problem in found]

    def tidy(self, progress: Progress) -> int:
        """Have the chunks removed that no backup refers to."""
        progress.stage(f"Removing data on {self._questions.host}")
        return int(self._questions.ask("tidy", timeout=None)[0])


def connected(
    wire: Line, host: str, path: str | None, progress: Progress, *, make: bool
) -> RemoteRepository:
    """Return the repository at the other end; path: None: its node's own.

    Raises BackupNotFound (not `make`, and there is none), StorageError, ConnectionBroken, Timeout.
    """
    questions = Questions(wire, host, progress)
    opened, _ = questions.ask("open", path=path, make=make)
    return RemoteRepository(Path(str(opened["path"])), questions)
