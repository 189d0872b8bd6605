"""The console: scroll-back, viewers, slow and rude ones, a guest that floods or closes it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine import Engine, engine, wait_for
from pyvz.container.runtime import Terminal
from pyvz.errors import NotRunning

__all__ = ["engine"]


@contextmanager
def viewer(engine: Engine, name: str) -> Iterator[socket.socket]:
    with socket.socket(fileno=engine.runtime.console(name)) as sock:
        sock.settimeout(120)
        yield sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        data = sock.recv(65536)
        if not data:
            pytest.fail(f"the console closed after {seen[-200:]!r}")
        seen += data
    return seen


def start(engine: Engine, text: str) -> str:
    spec = engine.spec()
    spec = spec._replace(argv=("/bin/sh", "-c", text))
    engine.start(spec)
    return spec.uuid


def test_scrollback_typing_and_size(engine: Engine) -> None:
    name = start(engine, "echo early; while read x; do echo got:$x; stty size; done")
    with viewer(engine, name) as first:
        read_until(first, b"early")
        engine.runtime.resize_console(name, Terminal(50, 120))
        first.send(b"word\n")
        assert b"got:word" in read_until(first, b"50 120")
    with viewer(engine, name) as second:
        read_until(second, b"50 120")
    with pytest.raises(NotRunning):
        engine.runtime.console("00000000-0000-0000-0000-000000000000")


def test_two_viewers_see_the_same(engine: Engine) -> None:
    name = start(engine, "while read x; do echo got:$x; done")
    with viewer(engine, name) as one, viewer(engine, name) as two:
        one.send(b"hello\n")
        read_until(one, b"got:hello")
        read_until(two, b"got:hello")


def test_slow_viewer_and_flood_do_not_disturb(engine: Engine) -> None:
    flooding = start(engine, "while :; do echo 0123456789012345678901234567890123456789; done")
    quiet = start(engine, "while read x; do echo got:$x; done")
    with viewer(engine, flooding), viewer(engine, quiet) as sock:
        time.sleep(0.3)
        begun = time.monotonic()
        sock.send(b"still\n")
        read_until(sock, b"got:still")
        engine.keeper.call("ping")
        assert time.monotonic() - begun < 120
        begun, begun_cpu = time.monotonic(), _cpu(engine)
        time.sleep(1.0)
        # The flood is held back, not served at any price.
        assert _cpu(engine) - begun_cpu < 0.5 * (time.monotonic() - begun)


def test_guest_that_closes_its_console(engine: Engine) -> None:
    name = start(engine, "exec <&- >&- 2>&-; sleep 0.3; echo back >/dev/console; sleep 1000")
    with viewer(engine, name) as sock:
        time.sleep(0.1)
        before = _cpu(engine)
        sock.send(b"into nothing\n")
        read_until(sock, b"back")
        assert _cpu(engine) - before < 0.5  # no busy loop on the hang-up
    assert engine.run(name, "true").code == 0


def test_viewer_that_goes_and_end_of_container(engine: Engine) -> None:
    name = start(engine, "while :; do echo tick; sleep 0.01; done")
    for _ in range(5):
        with viewer(engine, name) as sock:
            read_until(sock, b"tick")
    with viewer(engine, name) as sock:
        engine.runtime.kill(name)
        while sock.recv(65536):
            pass


def test_log(engine: Engine) -> None:
    log = engine.paths.root / "console.log"
    spec = engine.spec()._replace(argv=("/bin/sh", "-c", "echo logged; sleep 1000"), log=log)
    engine.start(spec)
    wait_for(lambda: log.exists() and "logged" in log.read_text())
    assert log.stat().st_mode & 0o777 == 0o600


def _cpu(engine: Engine) -> float:
    """CPU seconds that the keeper has used."""
    pid = engine.keeper.call("ping").data["pid"]
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
