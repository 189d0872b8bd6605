"""Writing a dump (dumpfile.py): memory is packed while CRIU still writes it.

Most of a dump are the files pages-<n>.img, which CRIU writes from front to back.  Before it begins,
FIFOs stand in their places (`Packing(fifos=...)`): their bytes never touch the disk unpacked.

    CRIU --fifos--> reader --pieces--> packers, one per processor: zstd, SHA-256, part-<n>
    the other files, once they are complete ---^

A failure closes the FIFOs: CRIU gets EPIPE, the dump fails, and the container goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import zstandard

from pyvz.container import dumpfile
from pyvz.container.dumpfile import INDEX, PIECE, Index, Piece
from pyvz.errors import CheckpointError
from pyvz.linux import file
from pyvz.model.task import Progress

_LEVEL = 1  # a disk is to be the bottleneck, not the processor
_MOST_THREADS = 8
_TICK = 0.1  # seconds between two words about the progress
_BACKLOG = 4  # pieces per packer that may wait: bounds the memory
_CHUNK = 1 << 20
_F_SETPIPE_SZ = 1031
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
    data: bytes | None
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
        self._reader = _Reader(images, fifos, self._put)
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
            stored = compressor.compress(data)
            if len(stored) >= len(data):
                stored = data
            checksum = hashlib.sha256(stored).hexdigest()
            dumpfile.write_all(sink, stored, at)
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


class _Reader:
    """Reads the FIFOs in a thread of its own, and cuts what comes into pieces."""

    def __init__(self, images: Path, count: int, put: Callable[[_Job], None]) -> None:
        self._images = images
        self._names = [f"pages-{number}.img" for number in range(1, count + 1)]
        self._put = put
        self._fds: dict[int, str] = {}
        self._used: set[str] = set()
        self._held: dict[str, bytearray] = {}
        self._sizes: dict[str, int] = {}
        self._closing = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dump-reader", daemon=True)

    def start(self) -> None:
        """Make the FIFOs and begin to read."""
        for name in self._names:
            path = self._images / name
            os.mkfifo(path, 0o600)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fds[fd] = name
        if self._fds:
            self._thread.start()

    def drain(self) -> dict[str, int]:
        """Read to the end of what CRIU has written; returns the sizes of the files that it wrote.

        The FIFOs are gone then.  Raises what has failed.
        """
        self._closing.set()
        if self._fds:
            self._thread.join()
        if self.failure is not None:
            raise self.failure
        self.close()
        return {name: self._sizes.get(name, 0) for name in self._used}

    def close(self) -> None:
        """Stop, and take the FIFOs away; idempotent."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._shut()
        for name in self._names:
            (self._images / name).unlink(missing_ok=True)

    def _shut(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = {}

    def _run(self) -> None:
        poller = select.poll()
        for fd in self._fds:
            poller.register(fd, select.POLLIN)
        try:
            while True:
                busy = [self._take(fd, poller) for fd, _ in poller.poll(_TICK * 1000)]
                if self._closing.is_set() and not any(busy):
                    break
            for name in list(self._held):
                self._flush(name)
        except BaseException as error:  # noqa: BLE001  # raised again by drain()
            self.failure = error
            self._shut()  # CRIU must not wait for us

    def _take(self, fd: int, poller: select.poll) -> bool:
        """Read what a FIFO has; False when that was nothing."""
        name = self._fds[fd]
        if name not in self._used:
            self._used.add(name)
            with suppress(OSError):  # more than fs.pipe-max-size
                fcntl.fcntl(fd, _F_SETPIPE_SZ, _CHUNK)
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            poller.unregister(fd)  # written and closed
            return False
        held = self._held.setdefault(name, bytearray())
        held += data
        if len(held) >= PIECE:
            self._flush(name)
        return True

    def _flush(self, name: str) -> None:
        held = self._held.pop(name)
        while held:
            data = bytes(held[:PIECE])
            del held[:PIECE]
            offset = self._sizes.get(name, 0)
            self._put(_Job(name, offset, len(data), data, -1))
            self._sizes[name] = offset + len(data)


def _read_all(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise CheckpointError("An image became shorter while it was read")
        data += more
    return data
