"""Programs run inside a container: streams, terminals, users, status, signals."""

from __future__ import annotations

import os
import signal
import time

import pytest

from engine import DEADLINE, Engine, engine, read_all, wait_for
from pyvz.container.runtime import ExecRequest, Terminal
from pyvz.errors import BadValue, ExecError, NotRunning, Timeout

__all__ = ["engine"]


@pytest.fixture
def name(engine: Engine) -> str:
    """A running container."""
    spec = engine.spec()
    engine.start(spec)
    return spec.uuid


@pytest.mark.parametrize(
    ("text", "code"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)],
)
def test_exit_status(engine: Engine, name: str, text: str, code: int) -> None:
    assert engine.shell(name, text).code == code


def test_streams_are_apart(engine: Engine, name: str) -> None:
    session = engine.runtime.exec(name, ExecRequest(("sh", "-c", "cat; echo err >&2")))
    stdin, stdout, stderr = session.fds
    os.write(stdin, b"in")
    os.close(stdin)
    assert (read_all(stdout), read_all(stderr)) == ("in", "err\n")
    assert session.wait(DEADLINE) == 0


def test_much_output(engine: Engine, name: str) -> None:
    assert len(engine.shell(name, "yes | head -c 3000000").out) == 3000000


def test_no_such_program(engine: Engine, name: str) -> None:
    ran = engine.run(name, "nothing-of-that-name")
    assert (ran.code, ran.err) == (127, "nothing-of-that-name: command not found\n")
    ran = engine.run(name, "/etc/passwd")
    assert (ran.code, ran.err) == (126, "/etc/passwd: Permission denied\n")
    with pytest.raises(BadValue):
        engine.run(name)


def test_environment_and_directory(engine: Engine, name: str) -> None:
    ran = engine.run(name, "env", env=(("A", "b c"), ("HOME", "/here")), cwd="/tmp")
    seen = dict(line.split("=", 1) for line in ran.out.splitlines())
    assert seen["A"] == "b c"
    assert seen["HOME"] == "/here"
    assert seen["container"] == "pyvz"
    assert seen["USER"] == "root"
    assert set(seen) == {
        *("A", "HOME", "PATH", "TERM", "container", "container_uuid"),
        *("USER", "LOGNAME", "SHELL"),
    }
    assert engine.run(name, "pwd", cwd="/tmp").out == "/tmp\n"
    with pytest.raises(ExecError, match="changing to the directory /nowhere"):
        engine.run(name, "pwd", cwd="/nowhere")


def test_users(engine: Engine, name: str) -> None:
    ran = engine.shell(name, "id; grep CapEff /proc/self/status || cat /proc/self/status")
    assert "uid=0" in ran.out
    ran = engine.run(name, "id", user="web")
    assert ran.out == "uid=33(web) gid=33(web) groups=33(web),44(extra)\n"
    assert engine.run(name, "id", user="4711").out.startswith("uid=4711 gid=4711")
    status = engine.run(name, "cat", "/proc/self/status", user="web").out
    assert "CapEff:\t0000000000000000" in status
    with pytest.raises(ExecError, match="no user 'nobody-here'"):
        engine.run(name, "id", user="nobody-here")


def test_terminal(engine: Engine, name: str) -> None:
    request = ExecRequest(("sh", "-c", "tty; stty size; read x; echo got $x"))
    session = engine.runtime.exec(name, request._replace(terminal=Terminal(33, 101)))
    (terminal,) = session.fds
    os.write(terminal, b"line\n")
    seen = b""
    wait_for(session.exit.done)
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # EIO: the program's side is closed
            break
    os.close(terminal)
    assert session.wait(DEADLINE) == 0
    text = seen.decode().replace("\r", "")
    assert "/dev/pts/" in text
    assert "33 101" in text
    assert "got line" in text


def test_closing_the_terminal_ends_the_program(engine: Engine, name: str) -> None:
    request = ExecRequest(("sleep", "1000"), terminal=Terminal(24, 80))
    session = engine.runtime.exec(name, request)
    os.close(session.fds[0])
    assert session.wait(DEADLINE) == 128 + signal.SIGHUP


def test_signals(engine: Engine, name: str) -> None:
    session = engine.runtime.exec(name, ExecRequest(("sh", "-c", "sleep 1000; true")))
    with pytest.raises(Timeout):
        session.wait(0.05)
    session.signal(signal.SIGHUP)
    assert session.wait(DEADLINE) == 129
    session.signal(signal.SIGKILL)  # has ended: nothing happens
    for fd in session.fds:
        os.close(fd)


def test_session_ends_with_its_container(engine: Engine, name: str) -> None:
    session = engine.runtime.exec(name, ExecRequest(("sleep", "1000")))
    engine.runtime.kill(name)
    assert session.wait(DEADLINE) == 137
    assert read_all(session.fds[1]) == ""
    os.close(session.fds[0])
    os.close(session.fds[2])
    with pytest.raises(NotRunning):
        engine.run(name, "true")


def test_session_is_confined_as_init_is(engine: Engine, name: str) -> None:
    mine = engine.run(name, "cat", "/proc/self/status").out
    init = engine.run(name, "cat", "/proc/1/status").out
    for field in ("CapPrm", "CapEff", "CapBnd", "CapInh", "Seccomp", "NoNewPrivs"):
        ours, inits = (next(x for x in t.splitlines() if x.startswith(field)) for t in (mine, init))
        assert ours == inits
    assert engine.run(name, "cat", "/proc/self/cgroup").out.count("/") >= 1
    links = engine.shell(
        name,
        "for n in mnt pid uts ipc net user time; do readlink /proc/1/ns/$n /proc/self/ns/$n; done",
    ).out.split()
    assert links[::2] == links[1::2]


def test_many_sessions_at_once(engine: Engine, name: str) -> None:
    requests = [ExecRequest(("sh", "-c", f"echo {n}; exit {n}")) for n in range(20)]
    sessions = [engine.runtime.exec(name, request) for request in requests]
    for number, session in enumerate(sessions):
        assert session.wait(DEADLINE) == number
        os.close(session.fds[0])
        assert read_all(session.fds[1]) == f"{number}\n"
        os.close(session.fds[2])


def test_exec_is_fast(engine: Engine, name: str) -> None:
    best = 1.0
    for _ in range(10):
        begun = time.perf_counter()
        assert engine.run(name, "true").code == 0
        best = min(best, time.perf_counter() - begun)
    assert best < 1  # some 10 ms on an idle machine
