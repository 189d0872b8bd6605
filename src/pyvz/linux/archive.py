"""Compressed tar archives of root file systems.

Data flows   archive file -> (we) -> decompressor -> tar   and   tar -> (we) -> compressor -> file
with us as the pump in the middle, so that progress counts real bytes and a cancelled task stops
at once.  Numeric owners, extended attributes (file capabilities) and ACLs are kept.

A hostile archive: GNU tar itself strips leading slashes from member names, refuses members with
".." in them, and makes symbolic links that point outside only after everything else was unpacked,
so that no member is written through one (we never pass --absolute-names).  A damaged or truncated
archive fails in the decompressor, whose verdict is awaited before `unpack` returns.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pyvz.errors import NoSpace, StorageError, TemplateError, Timeout, VZError
from pyvz.linux import run, xattr
from pyvz.linux.file import fsync_directory
from pyvz.model.task import Progress

CHUNK = 256 << 10
TICK = 0.2  # seconds between two looks at cancellation while a pipe is full or empty
STALL_TIMEOUT = 600.0  # seconds without one byte moved
TAR_OPTIONS = (
    *("--numeric-owner", "--xattrs", "--xattrs-include=*", f"--xattrs-exclude={xattr.OF_XFS}*"),
    "--acls",
)


class Compression(NamedTuple):
    """A compressed format and the programs for it, which read stdin and write stdout."""

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    expand: tuple[str, ...]
    compress: tuple[str, ...]


COMPRESSIONS = (
    Compression(
        "zstd", (".zst", ".zstd"), b"\x28\xb5\x2f\xfd",
        ("zstd", "-d", "-q", "-c"), ("zstd", "-q", "-c", "-T0", "-3"),
    ),
    Compression(
        "lz4", (".lz4",), b"\x04\x22\x4d\x18",
        ("lz4", "-d", "-q", "-c"), ("lz4", "-q", "-c", "-1"),
    ),
    Compression(
        "gzip", (".gz", ".tgz"), b"\x1f\x8b",
        ("gzip", "-d", "-c"), ("gzip", "-c", "-6"),
    ),
    Compression(
        "xz", (".xz", ".txz"), b"\xfd7zXZ\x00",
        ("xz", "-d", "-q", "-c"), ("xz", "-q", "-c", "-T0", "-3"),
    ),
    Compression(
        "bzip2", (".bz2", ".tbz2"), b"BZh",
        ("bzip2", "-d", "-c"), ("bzip2", "-c"),
    ),
    Compression("none", (".tar",), b"", ("cat",), ("cat",)),
)  # fmt: skip


def compression_of(archive: str | Path) -> Compression:
    """Return how an archive is compressed, told by its first bytes.

    Raises TemplateError when it is neither a known compression nor a plain tar; OSError.
    """
    with open(archive, "rb") as file:
        head = file.read(512)
    for compression in COMPRESSIONS:
        if compression.magic and head.startswith(compression.magic):
            return compression
    if head[257:262] == b"ustar":  # POSIX.1-1988 ustar header, magic field
        return COMPRESSIONS[-1]
    raise TemplateError(
        f"{archive} is not an archive that can be unpacked",
        hint="Known are tar archives, plain or compressed by "
        + ", ".join(c.name for c in COMPRESSIONS[:-1]),
    )


def compression_for(archive: str | Path) -> Compression:
    """Return the compression that a file name asks for; raise TemplateError."""
    name = os.fspath(archive)
    for compression in COMPRESSIONS:
        if name.endswith(compression.suffixes):
            return compression
    raise TemplateError(f"the name {name} names no compression (.zst, .lz4, .gz, .xz, .bz2, .tar)")


def unpack(archive: str | Path, into: str | Path, progress: Progress) -> None:
    """Unpack an archive into the directory INTO, which exists.

    Progress counts the archive's own bytes.  Raises TemplateError (damaged), NoSpace, Cancelled;
    what was unpacked by then stays: unpack into a staging directory.
    """
    argv = ["tar", "--extract", *TAR_OPTIONS, "--preserve-permissions", "--same-owner",
            "--warning=no-timestamp", "--directory", os.fspath(into)]  # fmt: skip
    _expand(archive, argv, progress)


def verify(archive: str | Path, progress: Progress) -> None:
    """Read an archive to its end, checksums included; raise TemplateError when it is damaged."""
    _expand(archive, ["tar", "--list"], progress)


def _expand(archive: str | Path, consumer: Sequence[str], progress: Progress) -> None:
    compression = compression_of(archive)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(archive, "rb", buffering=0))
        total = os.fstat(source.fileno()).st_size
        flow = _Flow(stack, progress)
        with flow.pipe() as (read_end, write_end):
            expander = flow.spawn(compression.expand, output=write_end)
            flow.spawn(consumer, source=read_end)
        assert expander.process.stdin is not None  # noqa: S101  (asked for a pipe)
        flow.pump(source.fileno(), expander.process.stdin, total)
        try:
            flow.finish()
        except NoSpace:
            raise
        except StorageError as error:
            raise TemplateError(
                f"{archive} is damaged or could not be unpacked", details=error.details
            ) from error


def pack(
    tree: str | Path,
    archive: str | Path,
    progress: Progress,
    *,
    exclude: Sequence[str] = (),
    total: int | None = None,
) -> None:
    """Pack all of the directory TREE into a new archive; its name says the compression.

    exclude: tar patterns, relative to the tree ("./var/cache/*").  Mounts below it are left out.
    Progress counts bytes before compression (`total`: their number where the caller knows it).
    The archive appears whole or not at all.  Raises StorageError, NoSpace, Cancelled.
    """
    compression = compression_for(archive)
    argv = ["tar", "--create", *TAR_OPTIONS, "--sparse", "--one-file-system", "--sort=name",
            "--anchored", *(f"--exclude={pattern}" for pattern in exclude),
            "--directory", os.fspath(tree), "."]  # fmt: skip
    directory, name = os.path.split(os.path.abspath(archive))
    temporary = os.path.join(directory, f".{name}.part")
    with contextlib.ExitStack() as stack:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        target = os.open(temporary, flags, 0o644)
        stack.callback(os.close, target)
        undo = stack.enter_context(contextlib.ExitStack())
        undo.callback(os.unlink, temporary)
        flow = _Flow(stack, progress)
        packer = flow.spawn(argv, read_output=True)
        compressor = flow.spawn(compression.compress, output=target)
        assert packer.process.stdout is not None  # noqa: S101  (asked for pipes)
        assert compressor.process.stdin is not None  # noqa: S101
        flow.pump(packer.process.stdout.fileno(), compressor.process.stdin, total)
        flow.finish()
        os.fsync(target)
        os.rename(temporary, archive)
        undo.pop_all()
        fsync_directory(directory)


class _Stage(NamedTuple):
    """One program of a flow and the file its complaints go to."""

    process: run.Process
    errors: IO[bytes]


class _Flow:
    """Programs joined by pipes, fed by us, ended with the exit stack that they belong to."""

    def __init__(self, stack: contextlib.ExitStack, progress: Progress) -> None:
        self.stack = stack
        self.progress = progress
        self.stages: list[_Stage] = []

    @contextlib.contextmanager
    def pipe(self) -> Iterator[tuple[int, int]]:
        """Yield both ends of a new pipe; our copies are closed then, so that its end is seen."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            yield read_end, write_end
        finally:
            os.close(read_end)
            os.close(write_end)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        source: int | None = None,
        output: int | None = None,
        read_output: bool = False,
    ) -> _Stage:
        """Start a program; it reads `source` or from us, writes to `output`, to us or nowhere."""
        # A file, not a pipe: nobody has to read it while the data flows.
        errors = self.stack.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        options: run.SpawnOptions = {"stderr_fd": errors.fileno()}
        if source is not None:
            options["stdin_fd"] = source
        if output is not None:
            options["stdout_fd"] = output
        elif not read_output:
            options["stdout_fd"] = self._nowhere()
        wants_input = source is None and not read_output
        process = self.stack.enter_context(run.spawn(argv, input_pipe=wants_input, **options))
        stage = _Stage(process, errors)
        self.stages.append(stage)
        return stage

    def _nowhere(self) -> int:
        fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self.stack.callback(os.close, fd)
        return fd

    def pump(self, source: int, sink: IO[bytes], total: int | None) -> None:
        """Move everything from SOURCE into SINK and close it; stops early when nobody reads."""
        os.set_blocking(sink.fileno(), False)
        done = 0
        with contextlib.suppress(BrokenPipeError):
            while chunk := self.read(source):
                self._write(sink.fileno(), chunk)
                done += len(chunk)
                self.progress.advance(done, total)
        sink.close()

    def read(self, source: int) -> bytes:
        """Return the next data of SOURCE, b"" at its end."""
        self._await(source, select.POLLIN)
        return os.read(source, CHUNK)

    def _write(self, sink: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            self._await(sink, select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(sink, view) :]

    def _await(self, fd: int, event: int) -> None:
        poller = select.poll()
        poller.register(fd, event)
        for _ in self._ticks("data"):
            if poller.poll(TICK * 1000):
                return

    def _ticks(self, what: str) -> Iterator[None]:
        deadline = time.monotonic() + STALL_TIMEOUT
        while time.monotonic() < deadline:
            self.progress.check()
            yield
        raise Timeout(f"no {what} from {self.stages[-1].process.argv[0]} for {STALL_TIMEOUT:g} s")

    def finish(self) -> None:
        """Wait for every program; raise NoSpace or StorageError when one failed."""
        for stage in self.stages:
            self._wait(stage.process.poll)
        failures = [stage for stage in self.stages if stage.process.poll()]
        if not failures:
            return
        problems = [_failure(stage) for stage in failures]
        for problem in problems:
            if isinstance(problem, NoSpace):
                raise problem
        details = "\n".join(f"{p.message}\n{p.details}".strip() for p in problems)
        raise StorageError("the archive could not be processed", details=details)

    def _wait(self, poll: Callable[[], int | None]) -> None:
        for _ in self._ticks("end"):
            for _ in range(20):
                if poll() is not None:
                    return
                time.sleep(TICK / 20)


def _failure(stage: _Stage) -> VZError:
    size = os.fstat(stage.errors.fileno()).st_size
    last = os.pread(stage.errors.fileno(), run.MAX_ERRORS, max(0, size - run.MAX_ERRORS))
    result = run.Result(stage.process.poll() or 0, "", last.decode("utf-8", "surrogateescape"))
    return run.failure(stage.process.argv, result)
