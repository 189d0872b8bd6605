"""linux/process.py: processes that cannot be mistaken for others."""

from __future__ import annotations

import os
import signal

import pytest

from pyvz.linux import process
from pyvz.linux.process import Pidfd


def fork_sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def test_life_of_a_child() -> None:
    pid = fork_sleeper()
    started = process.start_time(pid)
    assert process.alive(pid, started)
    assert not process.alive(pid, started + 1)
    assert process.parent_pid(pid) == os.getpid()
    with Pidfd(pid, started) as handle:
        assert handle.started == started
        assert not handle.wait(0.01)
        assert handle.exit_status() is None
        assert handle.signal(signal.SIGTERM)
        assert handle.wait(60)
        assert process.state(pid) == "Z"
        assert not process.alive(pid, started)
        os.waitpid(pid, 0)
        assert not handle.signal(signal.SIGTERM)
        assert handle.exit_status() in {signal.SIGTERM, None}
    handle.close()
    with pytest.raises(ProcessLookupError):
        process.start_time(pid)


def test_another_start_time_is_another_process() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ProcessLookupError):
        Pidfd(os.getpid(), 1)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_strange_names() -> None:
    pid = os.fork()
    if pid == 0:
        with open("/proc/self/comm", "w") as file:
            file.write(") S 1 (x")
        signal.pause()
    try:
        while "S 1" not in open(f"/proc/{pid}/comm").read():  # noqa: SIM115
            pass
        assert process.parent_pid(pid) == os.getpid()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_boot_id() -> None:
    assert len(process.boot_id()) == 36
