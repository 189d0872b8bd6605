"""vzd: the daemon of a node.

    vzd [--root DIR] [--foreground] [--debug]

One per node, held by a lock on <run>/vzd.lock; a second one says so and ends with status 1.
Without --foreground the command returns when vzd serves (status 0) or could not start (status 1).
Under systemd (--foreground) it takes the socket of pyvz-vzd.socket and tells when it is ready.

SIGTERM and SIGINT end it; containers run on.  SIGHUP opens the log anew.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from pyvz.daemon import service
from pyvz.daemon.access import reader_group
from pyvz.errors import InvalidState, VZError
from pyvz.store.paths import Paths
from pyvz.version import VERSION

LISTEN_FD = 3  # sd_listen_fds(3): SD_LISTEN_FDS_START
LOCK_TIMEOUT = 35.0  # seconds: a vzd that is ending finishes its tasks first
READY = b"+"


def main(argv: list[str] | None = None) -> int:
    """Run vzd; return its exit status."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    paths = Paths(Path.cwd() / os.path.normpath(options.root))
    if os.geteuid() != 0:
        sys.stderr.write("vzd: only root may run it\n")
        return 1
    os.umask(0o022)
    ready = -1
    if not options.foreground:
        ready = _detach()
    os.chdir("/")
    try:
        code = _run(paths, options, ready)
    except (VZError, OSError) as error:
        text = f"vzd: {error}"
        if isinstance(error, VZError) and error.details:
            text += "\n  " + error.details.replace("\n", "\n  ")
        if ready >= 0:
            _tell(ready, text.encode())
        else:
            sys.stderr.write(text + "\n")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Now: threads of operations that are left behind are recovered by the next start.
    os._exit(code)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("vzd", description="The daemon of a pyvz node.")
    root = os.environ.get("PYVZ_ROOT") or "/"
    parser.add_argument("--root", default=root, help="root of the node (default: $PYVZ_ROOT or /)")
    parser.add_argument("--foreground", action="store_true", help="stay here, log to stderr too")
    parser.add_argument("--debug", action="store_true", help="log every call and every program")
    parser.add_argument("--version", action="version", version=f"vzd version {VERSION}")
    return parser.parse_args(argv)


def _run(paths: Paths, options: argparse.Namespace, ready: int) -> int:
    """Lock the node, open its socket and serve until a signal ends it."""
    for folder in (paths.run, paths.lib, paths.log):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _Locked(paths):
        given = _activated()
        sock = given or _bind(paths.vzd_socket)
        _admit_readers(paths.vzd_socket)

        def serving() -> None:
            _notify(b"READY=1")
            if ready >= 0:
                _tell(ready, READY)

        try:
            return service.run(
                service.Options(paths, options.foreground, options.debug), sock, serving, _notify
            )
        finally:
            sock.close()
            if given is None:
                paths.vzd_socket.unlink(missing_ok=True)


class _Locked:
    """Holds the node's lock.  Raises InvalidState when another vzd serves the node."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._fd = -1

    def __enter__(self) -> None:
        path = self._paths.run / "vzd.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not self._try():
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            if _serves(self._paths.vzd_socket) or time.monotonic() > deadline:
                raise InvalidState(f"vzd runs already for this node (pid {holder})")
            time.sleep(0.05)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _serves(path: Path) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(os.fspath(path))
        except OSError:
            return False
        return True


def _activated() -> socket.socket | None:
    """Return the listening socket that systemd hands us (sd_listen_fds(3)), if it does."""
    try:
        meant = int(os.environ["LISTEN_PID"]) == os.getpid() and int(os.environ["LISTEN_FDS"]) > 0
    except (KeyError, ValueError):
        return None
    if not meant:
        return None
    os.set_inheritable(LISTEN_FD, False)  # noqa: FBT003
    sock = socket.socket(fileno=LISTEN_FD)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise InvalidState("systemd handed vzd something else than a Unix stream socket")
    return sock


def _bind(path: Path) -> socket.socket:
    """Return a socket bound to PATH, to which only root may connect."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise InvalidState(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(before)
    return sock


def _admit_readers(path: Path) -> None:
    """Let members of the group `vz` connect, where there is such a group."""
    group = reader_group()
    if group is not None and path.exists():
        os.chown(path, 0, group)
        path.chmod(0o660)


def _notify(message: bytes) -> None:
    """Tell systemd about our state (sd_notify(3)), where it asked for that."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(address)
        sock.sendall(message)


def _detach() -> int:
    """Go on in a background process; return the pipe by which it tells how its start went.

    The process that was called waits for that and never returns from here.
    """
    read, write = os.pipe()
    if os.fork() != 0:
        os.close(write)
        os.wait()
        os._exit(_report(read))
    os.setsid()
    if os.fork() != 0:
        os._exit(0)  # the daemon is nobody's session leader: it never gets a terminal
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    # Whatever our caller had open (a lock of a script, a pipe) is not ours to hold.
    os.closerange(3, write)
    os.closerange(write + 1, os.sysconf("SC_OPEN_MAX"))
    return write


def _report(read: int) -> int:
    """Wait until the daemon serves or gave up, tell the caller, and return the exit status."""
    said = b""
    while chunk := os.read(read, 4096):
        said += chunk
        if said == READY:
            return 0
    sys.stderr.write(said.decode("utf-8", "replace").strip() or "vzd: ended at once")
    sys.stderr.write("\n")
    sys.stderr.flush()
    return 1


def _tell(ready: int, message: bytes) -> None:
    with suppress(OSError):
        os.write(ready, message)
        os.close(ready)


if __name__ == "__main__":
    main()
