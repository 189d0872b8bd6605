"""Writing a dump (dumpfile.py): memory is packed while CRIU still writes it.

FIFOs stand in the places of its files (fifos.py): their bytes never touch the disk unpacked.

    CRIU --fifos--> reader --pieces--> packers, one per processor: zstd, SHA-256, part-<n>
    the other files, once they are complete ---^

A failure closes the FIFOs: CRIU gets EPIPE, the dump fails, and the container goes on.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import zstandard

from pyvz.container import dumpfile
from pyvz.container.dumpfile import INDEX, PIECE, Index, Piece
from pyvz.container.fifos import Fifos
from pyvz.errors import CheckpointError
from pyvz.linux import file, syscall
from pyvz.model.task import Progress

_LEVEL = 1  # a disk is to be the bottleneck, not the processor
_MOST_THREADS = 8
_TICK = 0.1  # seconds between two words about the progress
_BACKLOG = 4  # pieces per packer that may wait: bounds the memory
_SLICES, _SLICE = 16, 8 << 10  # bytes of a piece by which it is judged whether it shrinks
_SHRINKS = 0.97
_SKIPPED = (".log", ".sock", ".socket")


def pack(images: Path, target: Path, progress: Progress, *, sync: bool = True) -> Index:
    """Write the files of `images` into `target`, which must not be there.

    sync: return when it is on the disk.  On failure nothing is at `target`.
    """
    with Packing(images, target, sync=sync) as packing:
        return packing.finish(progress)


class _Job(NamedTuple):
    """A piece to write: its bytes, or the open file that has them."""

    name: str
    offset: int
    length: int
    data: bytes | memoryview | None
    source: int


class Packing:
    """One dump being written to `target`, which must not be there; nothing is after a failure."""

    def __init__(self, images: Path, target: Path, *, fifos: int = 0, sync: bool = True) -> None:
        self._images = images
        self._target = target
        self._temporary = target.with_name(target.name + ".new")
        self._sync = sync
        count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_BACKLOG * count)
        self._threads = [
            threading.Thread(target=self._pack, args=(number,), name=f"dump-{number}", daemon=True)
            for number in range(count)
        ]
        self._reader = Fifos(images, fifos, self._put_memory, piece=PIECE)
        self._guard = threading.Lock()  # protects the following three
        self._sizes: dict[str, int] = {}
        self._pieces: list[tuple[str, Piece]] = []
        self._failure: BaseException | None = None
        self._done = 0

    def __enter__(self) -> Self:
        file.remove_tree(self._temporary)
        self._temporary.mkdir(mode=0o700, parents=True)
        for thread in self._threads:
            thread.start()
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()
        self._stop()
        file.remove_tree(self._temporary)

    def finish(self, progress: Progress) -> Index:
        """Take in all that there is, now that CRIU has closed its files; the target appears."""
        for name, size in self._reader.drain().items():
            self._sizes[name] = size
        sources = []
        try:
            for path in sorted(self._images.iterdir()):
                if path.is_file() and not path.is_symlink() and path.suffix not in _SKIPPED:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    sources.append(os.open(path, flags))
                    self._put_file(path.name, sources[-1], progress)
            self._stop(progress)
        finally:
            for fd in sources:
                os.close(fd)
        return self._commit()

    @property
    def failure(self) -> BaseException | None:
        """What a thread has failed with, so that CRIU could not write."""
        return self._failure or self._reader.failure

    # -- parts ----------------------------------------------------------------------------------

    def _put_file(self, name: str, fd: int, progress: Progress) -> None:
        size = os.fstat(fd).st_size
        self._sizes[name] = size
        for offset in range(0, size, PIECE):
            self._put(_Job(name, offset, min(PIECE, size - offset), None, fd))
            progress.advance(self._done, None)

    def _put_memory(self, name: str, offset: int, data: memoryview) -> None:
        self._put(_Job(name, offset, len(data), data, -1))

    def _put(self, job: _Job) -> None:
        """Hand a piece to the packers; raises what one of them has failed with."""
        while True:
            if self._failure is not None:
                raise self._failure
            with suppress(queue.Full):
                self._jobs.put(job, timeout=_TICK)
                return

    def _stop(self, progress: Progress | None = None) -> None:
        """Let the packers end when they have done everything; raises what one has failed with."""
        for thread in self._threads:
            while thread.is_alive():
                with suppress(queue.Full):
                    self._jobs.put(None, timeout=_TICK)
                thread.join(_TICK)
                if progress is not None:
                    progress.advance(self._done, None)
        if progress is not None and self._failure is not None:
            raise self._failure

    def _pack(self, number: int) -> None:
        try:
            with (self._temporary / f"part-{number}").open("wb", buffering=0) as sink:
                os.fchmod(sink.fileno(), 0o600)
                for name, piece in self._packed(number, sink.fileno()):
                    with self._guard:
                        self._pieces.append((name, piece))
                        self._done += piece.length
                if self._sync:
                    os.fdatasync(sink.fileno())
        except BaseException as error:  # noqa: BLE001  # raised again by who waits for us
            self._failure = self._failure or error

    def _packed(self, number: int, sink: int) -> Iterator[tuple[str, Piece]]:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        at = 0
        while (job := self._jobs.get()) is not None and self._failure is None:
            data = job.data
            if data is None:
                data = _read_all(job.source, job.length, job.offset)
            stored = _shrunk(compressor, data)
            checksum = hashlib.sha256(stored).hexdigest()
            dumpfile.write_all(sink, stored, at)
            if self._sync:  # or the disk would idle until all is there
                syscall.start_writeback(sink, at, len(stored))
            yield job.name, Piece(0, job.offset, job.length, number, at, len(stored), checksum)
            at += len(stored)

    def _commit(self) -> Index:
        names = sorted(self._sizes)
        numbers = {name: number for number, name in enumerate(names)}
        pieces = tuple(sorted(piece._replace(file=numbers[name]) for name, piece in self._pieces))
        index = Index(tuple((name, self._sizes[name]) for name in names), pieces)
        file.write_atomic(self._temporary / INDEX, dumpfile.to_json(index), 0o600)
        if self._sync:
            file.fsync_directory(self._temporary)
        self._temporary.rename(self._target)
        if self._sync:
            file.fsync_directory(self._target.parent)
        return index


def _shrunk(compressor: zstandard.ZstdCompressor, data: bytes | memoryview) -> bytes | memoryview:
    """Return DATA compressed, or as it is when that is not smaller, or does not look so."""
    step = len(data) // _SLICES
    if step > 2 * _SLICE:
        sample = b"".join(data[at : at + _SLICE] for at in range(0, step * _SLICES, step))
        if len(compressor.compress(sample)) > _SHRINKS * len(sample):
            return data
    packed = compressor.compress(data)
    return packed if len(packed) < len(data) else data


def _read_all(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise CheckpointError("An image became shorter while it was read")
        data += more
    return data
