"""The one door to other programs.

Every program gets a clean environment, a session of its own, /dev/null as its standard input
unless something else is given, and no descriptor but those named.  It is ended (SIGTERM, after a
while SIGKILL, to every process of its session) and reaped on a timeout and on any exception.
There is never a shell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypedDict, Unpack

from pyvz.errors import CommandFailed, NoSpace, Timeout

log = logging.getLogger(__name__)

Argv = Sequence[str | Path]

MAX_OUTPUT = 16 << 20  # bytes of stdout kept; a program that writes more is a failure
MAX_ERRORS = 64 << 10  # bytes of stderr kept: the last ones
DETAIL_LINES = 20
GRACE = 2.0  # seconds between SIGTERM and SIGKILL
TICK = 0.2  # seconds between two calls of `poll`

# strerror(ENOSPC) and strerror(EDQUOT) in the C locale; GNU tar's words for a short write(2)
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "Wrote only ")

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
}


class Result(NamedTuple):
    """How a program ended.  Bytes that are not UTF-8 survive as surrogates."""

    code: int  # exit status; minus the signal when one killed it
    stdout: str
    stderr: str


class SpawnOptions(TypedDict, total=False):
    """Keyword arguments of `start` and `spawn` (and of `run`).

    env: added to the clean environment.  cwd: "/" unless given.
    stdin_fd, stdout_fd, stderr_fd: descriptors the program gets as 0, 1, 2.
    pass_fds: further descriptors it keeps, under the same numbers.
    """

    env: Mapping[str, str]
    cwd: str | Path
    stdin_fd: int
    stdout_fd: int
    stderr_fd: int
    pass_fds: Sequence[int]


class RunOptions(SpawnOptions, total=False):
    """Keyword arguments of `run`.

    input: what the program reads on its standard input.
    timeout: seconds (60); None: no deadline (then give `poll`).
    check: whether another exit status than 0 is an error (True).
    on_line: called with each line of both outputs as it comes (CR and LF end one).
    poll: called several times a second, and may raise (Cancelled) to end the program.
    """

    input: str | bytes
    timeout: float | None
    check: bool
    on_line: Callable[[str], None]
    poll: Callable[[], None]


class Process:
    """A running program; made by `start` and `spawn`."""

    def __init__(self, argv: Sequence[str], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self.pid = popen.pid
        self.stdout: IO[bytes] | None = popen.stdout
        self.stderr: IO[bytes] | None = popen.stderr
        self.stdin: IO[bytes] | None = popen.stdin
        self._popen = popen

    def poll(self) -> int | None:
        """Return the exit status (minus the signal number when killed), None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float | None) -> int:
        """Wait at most TIMEOUT seconds for the end; raise Timeout."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Timeout(f"{self.argv[0]} did not end within {timeout:g} s") from None

    def end(self, grace: float = GRACE) -> int:
        """End the program and all of its session, and reap it.  Idempotent."""
        try:
            self._end_session(grace)
            return self._popen.wait()
        finally:
            self.close()

    def _end_session(self, grace: float) -> None:
        if self._popen.returncode is not None:
            return  # reaped: its number may be somebody else's by now
        self._signal(signal.SIGTERM)
        pidfd = os.pidfd_open(self.pid)
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)  # readable once it is a zombie
            poller.poll(grace * 1000)
        finally:
            os.close(pidfd)
        kill_session(self.pid)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Close our ends of its pipes."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def kill_session(session: int) -> None:
    """Kill every process whose session is SESSION (whose leader must not be reaped yet)."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(entry))
            try:
                # Asked after the pidfd was opened, so it is this process that is killed.
                if os.getsid(int(entry)) == session:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def start(argv: Argv, **options: Unpack[SpawnOptions]) -> Process:
    """Start a program and leave it running (a daemon); standard streams are /dev/null.

    The caller keeps the Process for as long as it wants to reap it.
    Raises CommandFailed when the program is not there.
    """
    return _start(argv, options, pipes=False, input_pipe=False)


@contextlib.contextmanager
def spawn(
    argv: Argv, *, input_pipe: bool = False, **options: Unpack[SpawnOptions]
) -> Iterator[Process]:
    """Run a program as long as the `with` block; its end is ours, whatever happens.

    Outputs that are not given a descriptor are pipes in `stdout` and `stderr`; with `input_pipe`
    also `stdin`.  Leaving the block ends the program if it still runs.
    """
    process = _start(argv, options, pipes=True, input_pipe=input_pipe)
    try:
        yield process
    finally:
        process.end()


def run(argv: Argv, **options: Unpack[RunOptions]) -> Result:
    """Run a program to its end and return what it said (see RunOptions).

    Raises CommandFailed (not installed; ended with an error and `check`; wrote too much),
    NoSpace when that is why it failed, Timeout, and whatever `on_line` and `poll` raise.
    """
    begun = time.monotonic()
    data = options.get("input")
    process = _start(argv, options, pipes=True, input_pipe=data is not None)
    try:
        exchange = _Exchange(process, options)
        stdout, stderr = exchange.run(data.encode() if isinstance(data, str) else data or b"")
        code = process.wait(GRACE)
    except BaseException:
        process.end()
        raise
    process.close()
    log.debug("%s: %d after %.3f s", process.argv[0], code, time.monotonic() - begun)
    result = Result(code, _text(stdout), _text(stderr))
    if code and options.get("check", True):
        raise failure(process.argv, result)
    return result


def failure(argv: Sequence[str], result: Result) -> CommandFailed | NoSpace:
    """Return the error that says that ARGV ended as RESULT."""
    name = os.path.basename(argv[0])
    details = "\n".join(
        (result.stderr.strip() or result.stdout.strip()).splitlines()[-DETAIL_LINES:]
    )
    if any(words in result.stderr for words in _NO_SPACE):
        return NoSpace(f"{name}: no space left", details=details)
    if result.code < 0:
        how = f"was killed by {_signal_name(-result.code)}"
    else:
        how = f"failed with status {result.code}"
    return CommandFailed(f"{name} {how}", details=details)


def _start(argv: Argv, options: SpawnOptions, *, pipes: bool, input_pipe: bool) -> Process:
    words = [os.fspath(word) for word in argv]
    log.debug("%s", shlex.join(words))
    output = subprocess.PIPE if pipes else subprocess.DEVNULL
    try:
        popen = subprocess.Popen(
            words,
            stdin=options.get("stdin_fd", subprocess.PIPE if input_pipe else subprocess.DEVNULL),
            stdout=options.get("stdout_fd", output),
            stderr=options.get("stderr_fd", output),
            env={**ENVIRONMENT, **options.get("env", {})},
            cwd=options.get("cwd", "/"),
            pass_fds=tuple(options.get("pass_fds", ())),
            start_new_session=True,
            bufsize=0,
        )
    except FileNotFoundError as error:
        if error.filename == os.fspath(options.get("cwd", "/")):
            raise CommandFailed(f"{words[0]}: no directory {error.filename} to run in") from error
        raise CommandFailed(f"{words[0]}: not installed") from error
    except OSError as error:
        raise CommandFailed(f"{words[0]}: {error.strerror}") from error
    return Process(words, popen)


class _Exchange:
    """Feeds a program and listens to it until it has ended, with a deadline."""

    def __init__(self, process: Process, options: RunOptions) -> None:
        self.process = process
        self.timeout = options.get("timeout", 60.0)
        self.on_line = options.get("on_line")
        self.on_tick = options.get("poll")
        self.kept = {name: bytearray() for name in ("stdout", "stderr")}
        self.partial = dict.fromkeys(self.kept, b"")

    def run(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what the program wrote on stdout and (the end of what it wrote) on stderr."""
        self.unsent = memoryview(data)
        with contextlib.ExitStack() as stack:
            self.selector = stack.enter_context(selectors.DefaultSelector())
            pidfd = os.pidfd_open(self.process.pid)
            stack.callback(os.close, pidfd)
            self._register(pidfd)
            self._loop(pidfd)
        for name, rest in self.partial.items():
            self._lines(name, rest and b"\n")
        return bytes(self.kept["stdout"]), bytes(self.kept["stderr"])

    def _register(self, pidfd: int) -> None:
        self.selector.register(pidfd, selectors.EVENT_READ, "exit")
        for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr)):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                self.selector.register(stream, selectors.EVENT_READ, name)
        if self.process.stdin is not None:
            os.set_blocking(self.process.stdin.fileno(), False)
            self.selector.register(self.process.stdin, selectors.EVENT_WRITE, "stdin")

    def _loop(self, pidfd: int) -> None:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while self.selector.get_map():
            ended = pidfd not in self.selector.get_map()
            events = self.selector.select(self._patience(deadline, ended=ended))
            if ended and not events:
                return  # a daemon that it left behind holds its output open: not our business
            for key, _ in events:
                self._event(key)
            if self.on_tick is not None:
                self.on_tick()
            if deadline is not None and time.monotonic() >= deadline:
                name = os.path.basename(self.process.argv[0])
                raise Timeout(
                    f"{name} did not end within {self.timeout:g} s",
                    details=_text(bytes(self.kept["stderr"]))[-2000:],
                )

    def _patience(self, deadline: float | None, *, ended: bool) -> float | None:
        if ended:
            return TICK
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self.on_tick is None:
            return left
        return TICK if left is None else min(TICK, left)

    def _event(self, key: selectors.SelectorKey) -> None:
        if key.data == "stdin":
            if self._sending():  # closed by an exit seen in the same round
                self._send(key)
        elif key.data == "exit":
            self.selector.unregister(key.fileobj)
            self._stop_sending()
        else:
            self._receive(key)

    def _send(self, key: selectors.SelectorKey) -> None:
        try:
            self.unsent = self.unsent[os.write(key.fd, self.unsent[:65536]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = self.unsent[:0]
        if not self.unsent:
            self._stop_sending()

    def _sending(self) -> bool:
        return self.process.stdin is not None and not self.process.stdin.closed

    def _stop_sending(self) -> None:
        stdin = self.process.stdin
        if stdin is not None and not stdin.closed:
            self.selector.unregister(stdin)
            stdin.close()

    def _receive(self, key: selectors.SelectorKey) -> None:
        data = os.read(key.fd, 65536)
        if not data:
            self.selector.unregister(key.fileobj)
            return
        kept = self.kept[key.data]
        kept += data
        if key.data == "stderr":
            del kept[:-MAX_ERRORS]
        elif len(kept) > MAX_OUTPUT:
            raise CommandFailed(f"{self.process.argv[0]} wrote more than {MAX_OUTPUT} bytes")
        self._lines(key.data, data)

    def _lines(self, name: str, data: bytes) -> None:
        if self.on_line is None or not data:
            return
        *lines, rest = (self.partial[name] + data).replace(b"\r", b"\n").split(b"\n")
        self.partial[name] = rest[-MAX_ERRORS:]
        for line in lines:
            if line:
                self.on_line(_text(line))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
