"""The test of a CRIU: `python -m pyvz.container.criutest CRIU DIRECTORY LOCK`.

Runs in fresh network, mount and pid namespaces.  A process with both ends of a TCP connection
sends a byte over it at every tick of a periodic timerfd, and counts what arrives in a file.  It is
dumped, killed by that, restored, and must count on.  Says in one line what is wrong; exit status 0
when nothing is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from pyvz.container import criuimages, netns
from pyvz.errors import CommandFailed, VZError
from pyvz.linux import run, syscall

_TICK = 0.01
_PATIENCE = 30.0
_COUNTER = 8  # bytes


def main(words: list[str]) -> int:
    """Test the CRIU named by the command line."""
    program, directory, lock = words
    place = Path(directory)
    netns.loopback_up()
    pid = _start(place)
    try:
        problem = _test(program, place, pid, lock)
    except (VZError, OSError) as error:
        problem = str(error)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if problem:
        sys.stdout.write(problem + "\n")
    return 1 if problem else 0


def _test(program: str, place: Path, pid: int, lock: str) -> str:
    images = place / "images"
    images.mkdir()
    if not _counts(place):
        return "the test itself does not run"
    common: list[str | Path] = ["--images-dir", images, "--tcp-established", "--log-file"]
    if lock != "iptables":
        common = ["--network-lock", lock, *common]
    problem = _criu([program, "dump", "--tree", str(pid), *common, "dump.log"], images / "dump.log")
    if problem:
        return f"dump: {problem}"
    os.waitpid(pid, 0)
    criuimages.mend_timers(images)
    argv = [program, "restore", "--restore-detached", *common, "restore.log"]
    problem = _criu(argv, images / "restore.log")
    if problem:
        return f"restore: {problem}"
    return "" if _counts(place) else "a restored timer or TCP connection stands still"


def _criu(argv: list[str | Path], log: Path) -> str:
    """Run it; return the line of its log that tells why it failed, "" when it did not."""
    try:
        run.run(argv, timeout=_PATIENCE * 2)
    except CommandFailed as error:
        with contextlib.suppress(OSError):
            lines = log.read_text(errors="replace").splitlines()
            for line in lines:
                if "Error (" in line and "RLIMIT_NOFILE" not in line:
                    return line.partition("Error ")[2]
        words = error.details.strip().splitlines()
        return words[-1] if words else error.message
    return ""


def _counts(place: Path) -> bool:
    """Whether the count moves."""
    before = _count(place)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if _count(place) > before + 2:
            return True
        time.sleep(_TICK)
    return False


def _count(place: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return int.from_bytes((place / "count").read_bytes(), "little")
    return 0


def _start(place: Path) -> int:
    """Fork the process; it is in a session of its own and has nothing of ours open."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.chdir("/")
        _tick(os.open(place / "count", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    finally:
        os._exit(1)


def _tick(counter: int) -> None:
    """Send a byte at every tick, count what arrives, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        timer = syscall.periodic_timer(_TICK)
        arrived = 0
        while True:
            os.read(timer, 8)
            ours.sendall(b".")
            arrived += len(theirs.recv(4096))
            os.pwrite(counter, arrived.to_bytes(_COUNTER, "little"), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
