"""True figures inside, with real containers: limits seen inside, and lxcfs killed under load."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from engine import Engine, engine, read_all
from fakenode import engine_node
from pyvz.container import figures
from pyvz.container.runtime import ExecRequest
from pyvz.linux.lxcfs import Lxcfs
from pyvz.model.limits import Limits
from pyvz.operations.figures import Figures

__all__ = ["engine"]
pytestmark = pytest.mark.requires("program:lxcfs")
MIB = 1 << 20


@pytest.fixture
def lxcfs(engine: Engine) -> Iterator[Lxcfs]:
    made = Lxcfs(engine.paths.run / "lxcfs", engine.paths.log / "lxcfs.log")
    made.start()
    engine.runtime.figures.take(made.mount)
    yield made
    engine.runtime.figures.drop()
    made.end()


def read(engine: Engine, name: str, path: str) -> str:
    """Read with read(2): the cat of busybox uses sendfile(2), see docs/design/figures.md."""
    return engine.run(name, "dd", f"if={path}", "bs=64k").out


def meminfo(engine: Engine, name: str, key: str) -> int:
    text = read(engine, name, "/proc/meminfo")
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, text
    return int(found[1]) * 1024


def test_limits_are_what_is_seen(engine: Engine, lxcfs: Lxcfs) -> None:
    spec = engine.spec()._replace(figures=True)
    spec = spec._replace(limits=Limits(memory=96 * MIB, swap=0, cpus="0"))
    engine.start(spec)
    assert meminfo(engine, spec.uuid, "MemTotal") == 96 * MIB
    assert read(engine, spec.uuid, "/sys/devices/system/cpu/online") == "0\n"
    engine.runtime.apply(spec.uuid, Limits(memory=128 * MIB, swap=0, cpus="0-1"))
    assert meminfo(engine, spec.uuid, "MemTotal") == 128 * MIB
    assert read(engine, spec.uuid, "/sys/devices/system/cpu/online") == "0-1\n"


def test_two_containers_never_see_each_others_figures(engine: Engine, lxcfs: Lxcfs) -> None:
    sizes = {}
    for size in (64, 96):
        spec = engine.spec()._replace(figures=True, limits=Limits(memory=size * MIB, swap=0))
        engine.start(spec)
        sizes[spec.uuid] = f"MemTotal: {size * 1024} kB"
    script = (
        "i=0; while test $i -lt 300; do read a b c </proc/meminfo; echo $a $b $c; i=$((i+1)); done"
    )
    sessions = {
        name: engine.runtime.exec(name, ExecRequest(argv=("/bin/sh", "-c", script)))
        for name in sizes
    }
    for name, session in sessions.items():
        os.close(session.fds[0])
        lines = read_all(session.fds[1]).splitlines()
        os.close(session.fds[2])
        assert set(lines) == {sizes[name]}, name
        assert len(lines) == 300


def test_a_killed_lxcfs_leaves_every_container_working(engine: Engine, lxcfs: Lxcfs) -> None:
    """Killed and hung under load: readers get errors for a moment, then figures again."""
    node = engine_node(engine)
    watch = Figures(node)
    specs = []
    for _ in range(3):
        spec = engine.spec()._replace(figures=True, limits=Limits(memory=80 * MIB, swap=0))
        engine.start(spec)
        specs.append(spec)
        load = "while :; do cat /proc/meminfo /proc/stat /proc/uptime >/dev/null 2>&1; done"
        session = engine.runtime.exec(spec.uuid, ExecRequest(argv=("/bin/sh", "-c", load)))
        for fd in session.fds:
            os.close(fd)
    watch.look()
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
        daemon = watch.daemon
        assert daemon is not None
        os.kill(daemon.pid, number)
        watch.look()
        assert watch.daemon not in (None, daemon)
        for spec in specs:
            assert meminfo(engine, spec.uuid, "MemTotal") == 80 * MIB
            table = engine.run(spec.uuid, "cat", "/proc/self/mountinfo").out
            assert len(re.findall("fuse.lxcfs", table)) == len(figures.TARGETS), table
    watch._lxcfs.end()
