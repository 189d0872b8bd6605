"""Images of CRIU on disk: compressed in parallel, every piece with its checksum.

    <target>/index.json        {"format", "files": [[name, size]], "pieces": [[...]], "digest"}
    <target>/part-<n>          pieces one after another, as one thread has written them

Written by dumpwriter.py.  A piece is a part of one file: [file, offset, length, part, at, stored,
checksum of what is stored].
Its stored form is a zstd frame, or the data themselves where that would not be smaller.  The target
appears by rename: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from pyvz.errors import BadValue, RestoreError
from pyvz.linux import file
from pyvz.model.task import Progress

INDEX = "index.json"
FORMAT = 1
PIECE = 8 << 20
_MOST_THREADS = 8
_TICK = 0.1  # seconds between two words about the progress
_INDEX_LIMIT = 64 << 20
_SIZE_LIMIT = 1 << 50


class Piece(NamedTuple):
    """See the module's text; file and part are numbers."""

    file: int
    offset: int
    length: int
    part: int
    at: int
    stored: int
    checksum: str


class Index(NamedTuple):
    """What the pieces make."""

    files: tuple[tuple[str, int], ...]
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum(piece.stored for piece in self.pieces)


def unpack(source: Path, images: Path, progress: Progress) -> Index:
    """Write the files back into the directory `images`; every piece is verified.

    Raises RestoreError that names what is damaged; what was written by then stays.
    """
    index = load(source)
    sinks = []
    try:
        for name, size in index.files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            # CRIU opens them as the container's root, too: who may not see them is kept out by the
            # directory above.
            sinks.append(os.open(images / name, flags, 0o644))
            os.fchmod(sinks[-1], 0o644)
            os.ftruncate(sinks[-1], size)

        def put(piece: Piece, data: bytes) -> None:
            write_all(sinks[piece.file], data, piece.offset)

        _read(source, index, put, progress)
    finally:
        for fd in sinks:
            os.close(fd)
    return index


def verify(source: Path, progress: Progress) -> Index:
    """Read everything and compare the checksums; raises RestoreError."""
    index = load(source)
    _read(source, index, lambda _piece, _data: None, progress)
    return index


def load(source: Path) -> Index:
    """Read and check the index; raises RestoreError."""
    path = source / INDEX
    try:
        return _from_json(file.read_text_limited(path, limit=_INDEX_LIMIT))
    except FileNotFoundError:
        raise RestoreError(f"{path} is missing: this is no dump of a container") from None
    except (OSError, ValueError, KeyError, TypeError, BadValue) as error:
        raise RestoreError(f"{path} is damaged: {error}") from error


# -- reading ------------------------------------------------------------------------------------


def _read(
    source: Path, index: Index, put: Callable[[Piece, bytes], None], progress: Progress
) -> None:
    meter = _Meter(progress, index.size)
    waiting: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    for piece in sorted(index.pieces, key=lambda piece: (piece.at, piece.part)):
        waiting.put(piece)
    parts: dict[int, int] = {}
    try:
        for part in {piece.part for piece in index.pieces}:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                parts[part] = os.open(source / f"part-{part}", flags)
            except OSError as error:
                raise RestoreError(f"{source}/part-{part} is missing: {error.strerror}") from error

        def work() -> None:
            while not meter.stopped:
                try:
                    piece = waiting.get_nowait()
                except queue.Empty:
                    return
                put(piece, _data_of(source, piece, parts[piece.part], index))
                meter.add(piece.length)

        with ThreadPoolExecutor(_threads(index.size), "undump") as pool:
            jobs = [pool.submit(work) for _ in range(_threads(index.size))]
            meter.follow(jobs)
            for job in jobs:
                job.result()
    finally:
        for fd in parts.values():
            os.close(fd)


def _data_of(source: Path, piece: Piece, fd: int, index: Index) -> bytes:
    stored = os.pread(fd, piece.stored, piece.at)
    name = index.files[piece.file][0]
    if hashlib.sha256(stored).hexdigest() != piece.checksum:
        raise RestoreError(
            f"The dump in {source} is damaged: part of {name} is not what was written",
            hint="It cannot be used. Start the container anew, or restore a backup.",
        )
    if piece.stored == piece.length:
        return stored
    try:
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=piece.length)
    except zstandard.ZstdError as error:
        raise RestoreError(f"The dump in {source} is damaged: {name}: {error}") from error
    if len(data) != piece.length:
        raise RestoreError(f"The dump in {source} is damaged: {name} has another length")
    return data


# -- parts --------------------------------------------------------------------------------------


class _Meter:
    """Counts bytes over threads, and stops them when one fails or the task is called off."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.stopped = False

    def add(self, count: int) -> None:
        self._done.put(count)

    def follow(self, jobs: Sequence[Future[Any]]) -> None:
        """Tell the progress until all have ended; called by the thread that owns it.

        The first failure, and a task that is called off, stop all.
        """
        done = 0
        pending = set(jobs)
        try:
            while pending and not any(job.done() and job.exception() for job in jobs):
                _, pending = wait(pending, _TICK, FIRST_COMPLETED)
                while not self._done.empty():
                    done += self._done.get()
                self._progress.advance(done, self._total)
        finally:
            self.stopped = True


def _threads(size: int) -> int:
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)), -(-size // PIECE)))


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it at a place."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def to_json(index: Index) -> str:
    """Return the text of the index."""
    body = {"format": FORMAT, "files": index.files, "pieces": index.pieces}
    text = json.dumps(body, separators=(",", ":"))
    return json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest(), "body": text})


def _from_json(text: str) -> Index:
    outer = json.loads(text)
    body_text = outer["body"]
    if hashlib.sha256(body_text.encode()).hexdigest() != outer["digest"]:
        raise BadValue("its checksum is wrong")
    body = json.loads(body_text)
    if body["format"] != FORMAT:
        raise BadValue("it is of a format that this version does not know")
    files = tuple(_checked_file(*each) for each in body["files"])
    pieces = tuple(_checked_piece(Piece(*each), files) for each in body["pieces"])
    index = Index(files, pieces)
    if sum(piece.length for piece in pieces) != index.size:
        raise BadValue("its pieces do not make its files")
    return index


def _checked_file(name: str, size: int) -> tuple[str, int]:
    if "/" in name or name in {"", ".", ".."} or "\0" in name or not 0 <= size < _SIZE_LIMIT:
        raise BadValue(f"{name[:80]!r} is not the name of an image")
    return name, size


def _checked_piece(piece: Piece, files: tuple[tuple[str, int], ...]) -> Piece:
    numbers = piece[:-1]
    if min(numbers) < 0 or piece.file >= len(files) or not 0 < piece.length <= PIECE:
        raise BadValue("it names a piece that cannot be")
    if piece.offset + piece.length > files[piece.file][1] or piece.stored > piece.length:
        raise BadValue("it names a piece that cannot be")
    return piece
