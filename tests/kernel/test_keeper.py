"""The keeper itself: one per node, handed over, killed, adopted; rude clients; its size."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import Engine, engine, wait_for
from pyvz.container import guestinit, program, protocol
from pyvz.container.client import KeeperClient, KeeperFailure
from pyvz.container.runtime import ExecRequest, ExitReason
from pyvz.errors import DaemonUnreachable
from pyvz.linux import process

__all__ = ["engine"]


def keeper_pid(engine: Engine) -> int:
    return int(engine.keeper.call("ping").data["pid"])


def kill_keeper(engine: Engine) -> int:
    pid = keeper_pid(engine)
    started = process.start_time(pid)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not process.alive(pid, started))
    return pid


def test_there_is_only_one(engine: Engine) -> None:
    again = KeeperClient.start_if_absent(engine.paths)
    assert int(again.call("ping").data["pid"]) == keeper_pid(engine)
    again.close()
    socket_path = os.fspath(engine.paths.keeper_socket)
    argv = [sys.executable, "-m", "pyvz.container.keeper", "--socket", socket_path]
    assert subprocess.run(argv, check=False, timeout=120).returncode == 75


def test_nobody_answers(short_root) -> None:
    with pytest.raises(DaemonUnreachable):
        KeeperClient(short_root / "nothing.sock").call("ping")


def test_rude_clients(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    path = os.fspath(engine.paths.keeper_socket)
    for packet in (
        b"garbage",
        b"[1]",
        b'{"memfd":99}',
        b"{" * 30000,
        b'{"op":"start","id":1}',
        b'{"op":"__init__","id":1}',
        b'{"op":["x"],"id":{}}',
        b"\0" * 200000,
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            try:
                sock.send(packet)
            except OSError:
                continue
            sock.settimeout(120)
            got = protocol.receive(sock)
            assert got is None or "error" in got[0]
    assert engine.run(spec.uuid, "true").code == 0


def test_long_messages_travel(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    long = "x" * 100_000
    assert engine.run(spec.uuid, "sh", "-c", "echo ${#A}", env=(("A", long),)).out == "100000\n"
    with pytest.raises(KeeperFailure, match="knows no request"):
        engine.keeper.call("nothing", text=long)


def test_others_may_not_connect(engine: Engine) -> None:
    assert engine.paths.keeper_socket.stat().st_mode & 0o777 == 0o600


def test_quit_is_refused_while_containers_run(engine: Engine) -> None:
    engine.start(engine.spec())
    with pytest.raises(KeeperFailure, match="containers are running"):
        engine.keeper.quit()


def test_signals_do_not_end_it_while_containers_run(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    pid = keeper_pid(engine)
    started = process.start_time(pid)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    time.sleep(0.05)
    assert keeper_pid(engine) == pid
    engine.runtime.kill(spec.uuid)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not process.alive(pid, started))


def test_an_older_keeper_executes_the_new_program(engine: Engine) -> None:
    spec = engine.spec()
    init = engine.start(spec)
    pid = keeper_pid(engine)
    noted = Path(f"{engine.paths.keeper_socket}.d/program")
    assert noted.read_text() == program.identity()
    noted.write_text("older")
    images = Path(f"/proc/{pid}/cmdline").read_bytes()
    again = KeeperClient.start_if_absent(engine.paths)
    again.close()
    assert noted.read_text() == program.identity()
    assert Path(f"/proc/{pid}/cmdline").read_bytes() != images  # --handover
    assert engine.runtime.running() == {spec.uuid: init}


def test_upgrade_keeps_everything(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()
    text = "echo before; while read x; do echo got:$x; [ $x = end ] && exit 5; done"
    spec = spec._replace(argv=("/bin/sh", "-c", text))
    init = engine.start(spec)
    session = engine.runtime.exec(spec.uuid, ExecRequest(("sh", "-c", "read x; exit $x")))
    viewer = socket.socket(fileno=engine.runtime.console(spec.uuid))
    viewer.settimeout(120)
    pid = keeper_pid(engine)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(2):
        engine.keeper.upgrade()
    assert keeper_pid(engine) == pid
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == descriptors)
    assert engine.runtime.running() == {spec.uuid: init}
    viewer.send(b"word\n")
    seen = b""
    while b"got:word" not in seen:
        seen += viewer.recv(4096)
    assert b"before" in seen
    os.write(session.fds[0], b"9\n")
    assert session.wait(60) == 9
    for fd in session.fds:
        os.close(fd)
    assert engine.run(spec.uuid, "true").code == 0
    viewer.send(b"end\n")
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason is ExitReason.EXITED
    viewer.close()


def test_killed_keeper_is_followed_by_one_that_adopts(engine: Engine) -> None:
    engine.watch()
    spec = engine.spec()
    spec = spec._replace(argv=("/bin/sh", "-c", "echo before; while read x; do echo got:$x; done"))
    init = engine.start(spec)
    former = kill_keeper(engine)
    wait_for(lambda: engine.runtime.running() == {spec.uuid: init})
    assert keeper_pid(engine) != former
    assert engine.run(spec.uuid, "true").code == 0
    # The client had kept a copy of the master, so the console lives, too.
    with socket.socket(fileno=engine.runtime.console(spec.uuid)) as viewer:
        viewer.settimeout(120)
        viewer.send(b"word\n")
        seen = b""
        while b"got:word" not in seen:
            seen += viewer.recv(4096)
    engine.shell(spec.uuid, "reboot -f")
    wait_for(lambda: engine.exits)
    assert engine.exits[0].reason in {ExitReason.REBOOT, ExitReason.UNKNOWN}
    assert engine.runtime.running() == {}


def test_adopted_container_is_stopped_and_killed(engine: Engine) -> None:
    spec = engine.spec()
    engine.start(spec)
    kill_keeper(engine)
    engine.runtime.kill(spec.uuid)
    engine.runtime.clean(spec.uuid)
    engine.start(spec)
    kill_keeper(engine)
    kind = guestinit.OTHER
    assert engine.runtime.stop(spec.uuid, kind, timeout=60)


def test_container_that_ends_while_there_is_no_keeper(engine: Engine) -> None:
    spec = engine.spec()
    init = engine.start(spec)
    kill_keeper(engine)
    os.kill(init.pid, signal.SIGKILL)
    wait_for(lambda: not process.alive(init.pid, init.start_time))
    engine.watch()
    wait_for(lambda: engine.exits)
    # Unknown when its parent has reaped it before the next keeper looked at the zombie.
    assert engine.exits[0].reason in {ExitReason.KILLED, ExitReason.UNKNOWN}


def test_exits_are_kept_until_acknowledged(engine: Engine) -> None:
    spec = engine.spec()
    init = engine.start(spec)
    engine.shell(spec.uuid, "poweroff -f")
    wait_for(lambda: engine.runtime.running() == {})
    for _ in range(2):  # nobody listens; not even a new keeper forgets
        kill_keeper(engine)
        assert engine.runtime.running() == {}
    engine.watch()
    wait_for(lambda: engine.exits)
    assert (engine.exits[0].pid, engine.exits[0].reason) == (init.pid, ExitReason.HALT)
    state = engine.paths.keeper_socket.with_name("keeper.sock.d")
    wait_for(lambda: list(state.iterdir()) == [])


def test_it_is_small_and_leaks_nothing(engine: Engine) -> None:
    pid = keeper_pid(engine)
    spec = engine.spec()
    engine.start(spec)
    engine.run(spec.uuid, "true")
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(15):
        engine.run(spec.uuid, "true")
        os.close(engine.runtime.console(spec.uuid))
        with pytest.raises(Exception, match="looking"):
            engine.keeper.call("signal", uuid="nothing", number=0)
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
    with open(f"/proc/{pid}/smaps_rollup") as file:
        pss = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    assert pss < 16 * 1024
