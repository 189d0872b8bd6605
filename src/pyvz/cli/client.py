"""The client side of vzd's API: a few lines of Varlink, and the start of vzd where it is absent.

On the wire (varlink.org): JSON objects, each ended by a zero byte, over a Unix stream socket.  A
call is {"method", "parameters", "more"}; a reply is {"parameters", "continues", "error"}.  File
descriptors travel beside the reply that names them (SCM_RIGHTS), in the order of the reply.

Every command line imports this module, so it imports nothing that starts slowly.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from _socket import (  # the C half: `socket` adds enum wrappers and selectors, 3 ms at each start
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from pyvz import errors
from pyvz.cli import quickjson

TYPE_CHECKING = False  # `typing` costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

ERROR_PREFIX = "io.pyvz.Error."
START_TIMEOUT = 60.0  # seconds for a vzd to start: 0.3 s as a rule, over 30 s seen on a busy node
POLL = 0.005
MAX_FDS = 16  # in one reply
# Questions: asked once more when vzd ends before it answers, for the next vzd knows as much.
QUESTIONS = ("List", "Info", "Status", "Statistics", "Tasks", "Ping")
UNIT_FILES = ("/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/lib/systemd/system/")


class Reply:
    """One reply: its parameters, whether another follows, and the descriptors that came along."""

    def __init__(self, parameters: dict[str, Any], continues: bool, fds: list[int]) -> None:  # noqa: FBT001
        self.parameters = parameters
        self.continues = continues
        self.fds = fds


class Connection:
    """A connection to vzd.  One call at a time; closing it calls off what can be called off."""

    def __init__(self, sock: socket, log: str, again: Callable[[], socket] | None = None) -> None:
        self._sock = sock
        self._log = log
        self._again = again
        self._buffer = b""
        self._fds: list[int] = []

    def __enter__(self) -> Connection:
        """Return the connection; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def fileno(self) -> int:
        """Return the socket's descriptor, for select; see `buffered` first."""
        return self._sock.fileno()

    @property
    def buffered(self) -> bool:
        """Whether `receive` would return at once with a reply that was read already."""
        return b"\0" in self._buffer

    def close(self) -> None:
        """Close the connection and every descriptor that nobody took."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call METHOD ("Environment.List") and return the reply's parameters.

        A parameter that is None is left out.  Raises the class of `errors` that vzd names.
        """
        try:
            return self.call_fds(method, **parameters).parameters
        except errors.DaemonUnreachable:
            if self._again is None or method.rpartition(".")[2] not in QUESTIONS:
                raise
        self.close()
        self._buffer = b""
        self._sock, self._again = self._again(), None
        return self.call_fds(method, **parameters).parameters

    def call_fds(self, method: str, /, *fds: int, **parameters: Any) -> Reply:
        """Call METHOD and return the whole reply; its descriptors belong to the caller.

        fds: descriptors for vzd, which a parameter names by its place among them.
        """
        self.send(method, parameters, more=False, fds=fds)
        return self.receive()

    def stream(
        self,
        method: str,
        /,
        *,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Call METHOD, hand each progress to ON_PROGRESS, and return the result."""
        result: dict[str, Any] = {}
        for reply in self.replies(method, **parameters):
            progress = reply.get("progress")
            if progress is not None and on_progress is not None:
                on_progress(progress)
            result = reply.get("result") or result
        return result

    def replies(self, method: str, /, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Call METHOD and yield the parameters of every reply (Node.Events has no end)."""
        self.send(method, parameters, more=True)
        continues = True
        while continues:
            reply = self.receive()
            continues = reply.continues
            yield reply.parameters

    def send(
        self, method: str, parameters: dict[str, Any], *, more: bool, fds: tuple[int, ...] = ()
    ) -> None:
        """Send a call; `receive` fetches its replies one by one."""
        if not method.startswith(("io.", "org.")):
            method = "io.pyvz." + method
        call: dict[str, Any] = {"method": method}
        given = {name: value for name, value in parameters.items() if value is not None}
        if given:
            call["parameters"] = given
        if more:
            call["more"] = True
        try:
            data = quickjson.dumps(call).encode() + b"\0"
            if fds:
                rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
                data = data[self._sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, rights)]) :]
            self._sock.sendall(data)
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> Reply:
        """Wait for the next reply.  Raises the error that it carries."""
        while (end := self._buffer.find(b"\0")) < 0:
            self._read()
        message, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        # One recvmsg may return several messages, but it ends with the one that has descriptors
        # (unix(7); net/unix/af_unix.c, unix_stream_read_generic): they belong to the last.
        fds: list[int] = []
        if not self._buffer:
            fds, self._fds = self._fds, fds
        reply = quickjson.loads(message.decode())
        name = reply.get("error")
        parameters = reply.get("parameters") or {}
        if name:
            raise error_from(name, parameters)
        return Reply(parameters, bool(reply.get("continues")), fds)

    def _read(self) -> None:
        try:
            data, control, _, _ = self._sock.recvmsg(
                65536, CMSG_SPACE(4 * MAX_FDS), MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise self._lost() from error
        for level, kind, payload in control:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                usable = len(payload) - len(payload) % 4
                self._fds.extend(
                    int.from_bytes(payload[at : at + 4], sys.byteorder)
                    for at in range(0, usable, 4)
                )
        if not data:
            raise self._lost()
        self._buffer += data

    def _lost(self) -> errors.VZError:
        return errors.DaemonUnreachable(
            "vzd closed the connection before it answered", hint=f"See {self._log}."
        )


def error_from(name: str, parameters: dict[str, Any]) -> errors.VZError:
    """Return the exception that the Varlink error NAME stands for; VZError when it is unknown."""
    kind = getattr(errors, name.removeprefix(ERROR_PREFIX), None)
    if name.startswith(ERROR_PREFIX):
        if not (isinstance(kind, type) and issubclass(kind, errors.VZError)):
            kind = errors.VZError
        return kind(
            str(parameters.get("message") or name),
            details=str(parameters.get("details") or ""),
            hint=str(parameters.get("hint") or ""),
        )
    told = ", ".join(f"{key} {value}" for key, value in parameters.items())
    message = f"vzd refused the call: {name.rpartition('.')[2]}" + (f" ({told})" if told else "")
    if name.endswith(".PermissionDenied"):
        return errors.PermissionDenied(message)
    if name.endswith(".InvalidParameter"):
        return errors.UsageError(message)
    return errors.VZError(message, hint="The command and vzd may be of different versions.")


def connect(root: str | None = None, *, start: bool = True) -> Connection:
    """Connect to the vzd of the node at ROOT (default: $PYVZ_ROOT, else /).

    start: start vzd when it is absent and we are root, and wait for it (a minute at most).
    Raises DaemonUnreachable; PermissionDenied for a user who is neither root nor in group vz.
    """
    root = os.path.abspath(root or os.environ.get("PYVZ_ROOT") or "/")
    log = os.path.join(root, "var/log/pyvz/vzd.log")

    def reached() -> socket:
        path = os.path.join(root, "run/pyvz/vzd.sock")
        sock = _try(path)
        if sock is not None:
            return sock
        if not start:
            raise errors.DaemonUnreachable("vzd does not run", hint=f"See {log}.")
        if os.geteuid() != 0:
            raise errors.DaemonUnreachable(
                "vzd does not run, and only root may start it",
                hint="Run the command as root, or start the service pyvz-vzd.",
            )
        return _start(root, path)

    return Connection(reached(), log, reached)


def _try(path: str) -> socket | None:
    """Return a connected socket, or None when nobody listens at PATH."""
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except PermissionError as error:
        sock.close()
        raise errors.PermissionDenied(
            "you may not talk to vzd", hint="Be root, or a member of the group vz for reading."
        ) from error
    except OSError as error:
        sock.close()
        raise errors.DaemonUnreachable(f"cannot connect to {path}: {error}") from error
    return sock


def daemon_command(root: str) -> list[str]:
    """Return the command that starts the vzd of ROOT and returns when it serves.

    The interpreter is the one that has vzd's libraries: $PYVZ_PYTHON (set by the launchers of
    script/bootstrap), else the checkout's virtual environment, else our own.
    """
    if root == "/" and os.path.isdir("/run/systemd/system"):
        for folder in UNIT_FILES:
            if os.path.exists(folder + "pyvz-vzd.service"):
                return ["/usr/bin/systemctl", "start", "pyvz-vzd.service"]
    python = os.environ.get("PYVZ_PYTHON") or os.path.join(_source(), "../.venv/bin/python")
    if not os.path.exists(python):
        python = sys.executable
    return [os.path.normpath(python), "-P", "-m", "pyvz.daemon.main", "--root", root]


def _source() -> str:
    """Return the directory that holds the package pyvz."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _start(root: str, path: str) -> socket:
    """Start vzd, or wait for the client that is starting it already; return the connection."""
    run = os.path.dirname(path)
    os.makedirs(run, mode=0o755, exist_ok=True)
    deadline = time.monotonic() + START_TIMEOUT
    lock = os.open(os.path.join(run, "vzd.starting"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    child = 0
    try:
        while time.monotonic() < deadline:
            sock = _try(path)
            if sock is not None:
                return sock
            if not child and _lock(lock):
                sock = _try(path)  # somebody may have finished between our two looks
                if sock is not None:
                    return sock
                child = _spawn(root)
            if child and _failed(child):
                sock = _try(path)  # another one may have been started by hand meanwhile
                if sock is not None:
                    return sock
                raise _not_started(root, "vzd ended at once")
            time.sleep(POLL)
    finally:
        os.close(lock)
    raise _not_started(root, f"vzd does not answer after {START_TIMEOUT:.0f} s")


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _spawn(root: str) -> int:
    """Start vzd detached from our terminal; return the pid of the parent half that reports."""
    logs = os.path.join(root, "var/log/pyvz")
    os.makedirs(logs, mode=0o755, exist_ok=True)
    stderr = os.path.join(logs, "vzd.stderr")
    command = daemon_command(root)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PYVZ_ROOT": root,
        "PYTHONPATH": _source(),
    }
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, stderr, write, 0o600),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(1, 2, 3, 13, 15),  # HUP INT QUIT PIPE TERM: our caller may ignore some
    )


def _failed(child: int) -> bool:
    """Whether the vzd that we started gave up (a status of 0: it serves in the background)."""
    try:
        pid, status = os.waitpid(child, os.WNOHANG)
    except ChildProcessError:
        return False  # reaped at an earlier look, with status 0
    return pid == child and status != 0


def _not_started(root: str, why: str) -> errors.VZError:
    logs = os.path.join(root, "var/log/pyvz")
    try:
        with open(os.path.join(logs, "vzd.stderr"), encoding="utf-8", errors="replace") as file:
            details = file.read(65536).strip()
    except OSError:
        details = ""
    return errors.DaemonUnreachable(why, details=details[-2000:], hint=f"See {logs}/vzd.log.")
