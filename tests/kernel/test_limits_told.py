"""Limits that are hit for real: events and beancounters of them."""

from __future__ import annotations

import os
import signal

import pytest

from engine import Engine, engine, wait_for
from fakenode import Listener, engine_environment, engine_node
from leaks import command_line
from pyvz.linux import socketcount
from pyvz.model.limits import Limits
from pyvz.operations.limitwatch import LimitWatch

__all__ = ["engine"]
MIB = 1 << 20
FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do sleep 1000 >/dev/null 2>&1 & done; true"
EATER = "x=0123456789abcdef; while :; do x=$x$x; done"


def test_killed_processes_and_refused_forks_are_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = engine_node(engine)
    spec = engine.spec()._replace(limits=Limits(memory=48 * MIB, swap=0, pids=12))
    engine.start(spec)
    listener = node.events
    assert isinstance(listener, Listener)
    events = listener.events
    monkeypatch.setattr(node.registry, "resolve", lambda uuid: engine_environment(engine, uuid))
    watch = LimitWatch(node)
    assert watch.look()
    assert events == []

    assert engine.shell(spec.uuid, EATER).code != 0
    engine.shell(spec.uuid, FORKS)
    watch.look()
    told = {(event.name, event.data.get("resource")) for event in events}
    assert ("ve-oom", None) in told
    assert ("ve-limit", "numproc") in told
    (killed,) = [event for event in events if event.name == "ve-oom"]
    assert int(str(killed.data["killed"])) >= 1
    assert killed.data["limit"] == str(48 * MIB)

    count = len(events)
    for pid in engine.cgroups.pids(spec.uuid):
        if b"sleep\x001000" in command_line(pid):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: (engine.cgroups.usage(spec.uuid).pids or 0) < 4)
    engine.shell(spec.uuid, FORKS)
    watch.look()
    assert len([e for e in events[count:] if e.name == "ve-limit"]) == 0  # told a moment ago


def test_counters_of_a_container(engine: Engine) -> None:
    spec = engine.spec()
    init = engine.start(spec)
    engine.shell(spec.uuid, "dd if=/dev/zero of=/dev/shm/x bs=1M count=4 2>/dev/null")
    found = engine.cgroups.counters(spec.uuid)
    assert found.shared is not None
    assert found.shared >= 4 * MIB
    assert found.anon is not None
    assert 0 < found.anon < 64 * MIB
    assert found.kernel is not None
    assert found.kernel > 0
    assert found.major is not None
    sockets = socketcount.of(init.pid)
    assert sockets is not None
    assert sockets.tcp == 0
    engine.runtime.kill(spec.uuid)
    wait_for(lambda: socketcount.of(init.pid) is None)
