"""The keeper: the parent of every container's init.  `python -m pyvz.container.keeper`.

One per node, root, single-threaded and small, because it forks and its children enter namespaces.
It starts inits and sessions, reaps them, holds the consoles, and tells its clients (vzd) what
ended and how.  It lives on when vzd goes, and containers live on when it goes; its successor
adopts them (ledger.py).  SIGTERM ends it only while there is no container.  What it is asked and
answers is in protocol.py; who may ask is root.  The socket is guarded by a lock file,
<socket>.lock: there is only one keeper.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys

from pyvz.container import confine, handover, program
from pyvz.container.custody import Keeper, log
from pyvz.linux import syscall


def _listen(path: str) -> tuple[socket.socket, int]:
    """Take the lock and the socket; BlockingIOError when there is another keeper."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.umask(0o177)
    listener.bind(path)
    os.umask(0o022)
    listener.listen(64)
    listener.setblocking(False)  # noqa: FBT003  # the name of the function
    return listener, lock


def _prepare_process() -> None:
    """Be the reaper of orphans, unreadable for containers, and no first victim of the OOM killer.

    Not dumpable: our forks, which carry our memory and descriptors into a container's pid
    namespace, must not be traced from in there.
    """
    os.chdir("/")
    os.umask(0o022)
    for number in signal.valid_signals():  # whoever started us may have ignored some
        if signal.getsignal(number) is signal.SIG_IGN and number not in confine.IGNORED:
            signal.signal(number, signal.SIG_DFL)
    for private in (32, 33):  # posix_spawn of glibc leaves its own signals ignored
        syscall.default_signal(private)
    syscall.set_child_subreaper()
    syscall.prctl(syscall.PR_SET_DUMPABLE, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for path, text in (("comm", "pyvz-keeper"), ("oom_score_adj", "-900")):
        with contextlib.suppress(OSError):  # lowering the score needs CAP_SYS_RESOURCE
            fd = os.open(f"/proc/self/{path}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)


def _option(words: list[str], name: str) -> str | None:
    if name not in words:
        return None
    return words[words.index(name) + 1]


def main(words: list[str]) -> int:
    """Run the keeper: --socket PATH [--state DIRECTORY] [--detach].

    --detach returns (0) when the keeper listens, and 75 when there is one already.
    """
    path = _option(words, "--socket")
    if path is None:
        log("usage: python -m pyvz.container.keeper --socket PATH [--state DIRECTORY] [--detach]")
        return 2
    state = _option(words, "--state") or path + ".d"
    memfd = _option(words, handover.OPTION)
    if memfd is not None:
        data = handover.load(int(memfd))
        _prepare_process()
        keeper = Keeper(socket.socket(fileno=data["listener"]), data["lock"], state)
        program.note(state)
        handover.restore(keeper, data)
        keeper.run()
    try:
        listener, lock = _listen(path)
    except BlockingIOError:
        log(f"there is a keeper at {path} already")
        return 75  # EX_TEMPFAIL
    if "--detach" in words:
        if os.fork():
            os._exit(0)
        os.setsid()
    _prepare_process()
    keeper = Keeper(listener, lock, state)
    program.note(state)
    keeper.adopt()
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
